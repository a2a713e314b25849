// Definitions of metrics and row outcomes, shown as tooltips.

import { el } from "./nodes.js";

const DEFINITIONS = {
  "Loss": "Mean cross-entropy of the supervised tokens, in nats per token; for DPO, the preference loss. Lower is better.",
  "Training loss": "Loss of the optimizer step at which the checkpoint was saved. Lower is better.",
  "Validation loss": "Loss on the validation file at that step. Lower is better.",
  "Perplexity": "exp(loss). Lower is better; 1 is a perfect prediction.",
  "Token accuracy": "Share of supervised tokens that the model predicts correctly, given all tokens before them. Higher is better.",
  "95% CI": "95% confidence interval of the change, over the examples of the validation file.",
  "Trained tokens": "Tokens processed during training, over all epochs.",
  "Supervised tokens": "Tokens that contribute to the loss: those of the assistant's messages or of the completion.",
  "Exact duplicates": "Rows equal to an earlier row.",
  "Truncated tokens": "Tokens removed from rows longer than the maximum sequence length.",
  "Median row length": "Half of the rows have at most this many tokens.",
  "Longest row": "Length of the longest row, in tokens.",
  "Rows kept": "Used unchanged.",
  "Rows truncated": "Cut at the maximum sequence length.",
  "Rows partly masked": "Kept; some of the assistant's messages have weight 0 and do not contribute to the loss.",
  "Rows dropped": "Not used: longer than the maximum sequence length.",
  "Duplicates dropped": "Not used: equal to an earlier row.",
  "Rows rejected": "Not used: invalid or unreadable.",
};

/** The label, with its definition as a tooltip if it has one. */
export function term(label) {
  const title = DEFINITIONS[label];
  return title ? el("span", { class: "term", title }, label) : label;
}
