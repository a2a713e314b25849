"""Summed cross-entropy of a causal language model: backbone, then fused head and loss, without logits of all tokens.

T tokens of all concatenated documents, N of them supervised, H hidden, V vocabulary, D documents.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import tunesmith.modeling.quantization.bitsandbytes_light  # noqa: F401  # isort: skip  # before peft imports it
import numpy as np
import torch
from torch import Tensor, nn

from tunesmith.kernels.dispatch import Kernels
from tunesmith.kernels.linear_cross_entropy import (
    CHUNK_BYTES,
    IGNORED,
    linear_cross_entropy_triton,
    token_losses,
)
from tunesmith.kernels.parity import Parity
from tunesmith.kernels.trained_rows import TrainedRows, with_rows
from tunesmith.kernels.varlen_attention import Documents
from tunesmith.modeling.adapters.neftune import noisy_embeddings
from tunesmith.modeling.adapters.new_rows import linear_with_rows
from tunesmith.modeling.loading.document_rope import document_rotary
from tunesmith.modeling.losses import own_logits
from tunesmith.modeling.losses.forward_path import (
    PACKED_AND_FUSED,
    ForwardPath,
    PaddedBatch,
    padded_batches,
    set_attention,
)
from tunesmith.modeling.losses.logit_transform import LogitTransform, logit_transform
from tunesmith.modeling.losses.own_logits import SupervisedLogits
from tunesmith.modeling.losses.routing import RouterRecorder, RoutingSums
from tunesmith.modeling.mode import evaluating
from tunesmith.modeling.parts import backbone, causal_lm, head_of
from tunesmith.modeling.precision import autocast_to


class LossSums(NamedTuple):
    """Sums over a micro-batch."""

    loss_sum: Tensor
    """fp32 scalar with gradient: cross-entropy in nats, summed over the supervised tokens."""
    num_correct: Tensor
    """int64 scalar: supervised tokens with the largest logit."""
    num_supervised: Tensor
    """int64 scalar: supervised tokens. Left on the device: reading it would wait for the forward pass."""


class DocumentScores(NamedTuple):
    """Scores of each document."""

    loss_sum: np.ndarray
    """fp64 [D]: nats, summed over a document's supervised tokens."""
    num_supervised: np.ndarray
    """int64 [D]: supervised tokens."""
    num_correct: np.ndarray
    """int64 [D]: supervised tokens with the largest logit."""


class CausalLoss(nn.Module):
    """Loss module around a causal language model, with or without adapters; called by the training loop.

    compute_dtype: bfloat16 runs the forward pass under autocast (fp32 weights stay fp32); None and float32 do not.
    neftune_alpha: noise on the embeddings in training mode (Jain et al. 2023, arXiv:2310.05914); None: no noise.
    kernels: for head and loss; None: automatic. compared: results of the kernels' parity check.
    z_loss: weight of the z-loss in training mode (Chowdhery et al. 2022, arXiv:2204.02311). path: how documents go
    through the model, with the attention implementation that this needs.
    """

    sets_attention = True
    """Whether the attention implementation of the path is set on the model."""

    def __init__(
        self,
        model: nn.Module,
        *,
        compute_dtype: torch.dtype | None = None,
        neftune_alpha: float | None = None,
        kernels: Kernels | None = None,
        compared: Sequence[Parity] = (),
        z_loss: float = 0.0,
        path: ForwardPath = PACKED_AND_FUSED,
    ):
        super().__init__()
        self.model = model
        self.head_loss = HeadLoss(model, kernels or Kernels(), z_loss)
        self.compared = compared
        self.routing = RouterRecorder(model)
        self.compute_dtype, self.neftune_alpha = compute_dtype, neftune_alpha
        self.use(path)

    def use(self, path: ForwardPath) -> None:
        """Compute on another path from now on. RunFault if the model does not let its attention be chosen."""
        self.path = path
        if self.sets_attention:
            set_attention(causal_lm(self.model), path)

    def forward(
        self,
        tokens_T: Tensor,
        labels_T: Tensor,
        positions_T: Tensor,
        lengths: list[int],
        label_smoothing: float = 0.0,
        by_token: bool = False,
    ) -> LossSums:
        """Compute the summed loss of packed documents.

        tokens, labels (-100: not supervised), positions (0 at each document's start): int64 [T] on the model's device.
        lengths: tokens of each document, summing to T. Dropout and noise follow the module's training mode and torch's
        generator. by_token: return losses, fp32 [T], and hits, bool [T], instead of their sums, without gradient.
        """
        with autocast_to(self.compute_dtype, tokens_T.device):
            if self.path.fused:
                hidden_TH = self._hidden(tokens_T, positions_T, lengths)
                loss_sum, num_correct = self.head_loss(hidden_TH, labels_T, label_smoothing, by_token)
            elif by_token:
                parts = self._own_logits(tokens_T, labels_T, lengths)
                loss_sum, num_correct = own_logits.token_losses(parts, labels_T)
            else:
                parts = self._own_logits(tokens_T, labels_T, lengths)
                options = {"label_smoothing": label_smoothing, "z_loss": self.head_loss.active_z_loss()}
                loss_sum, num_correct = own_logits.loss_sums(parts, self.head_loss.kernels, **options)
        return LossSums(loss_sum, num_correct, (labels_T != IGNORED).sum())

    def document_losses(
        self, tokens_T: Tensor, labels_T: Tensor, positions_T: Tensor, lengths: list[int]
    ) -> tuple[Tensor, Tensor]:
        """Return the summed loss of each document, fp32 [D] with gradient, and its supervised tokens, int64 [D].

        Arguments as for `forward`.
        """
        with autocast_to(self.compute_dtype, tokens_T.device):
            if self.path.fused:
                hidden_TH = self._hidden(tokens_T, positions_T, lengths)
                sums = [
                    self.head_loss(hidden_tH, labels_t, 0.0, False)[0]
                    for hidden_tH, labels_t in zip(hidden_TH.split(lengths), labels_T.split(lengths), strict=True)
                ]
            else:
                loss_T, _ = own_logits.token_losses(self._own_logits(tokens_T, labels_T, lengths), labels_T)
                sums = [loss_t.sum() for loss_t in loss_T.split(lengths)]
        counts_D = torch.stack([(part != IGNORED).sum() for part in labels_T.split(lengths)])
        return torch.stack(sums).float(), counts_D

    @torch.no_grad()
    def score(self, tokens_T: Tensor, labels_T: Tensor, positions_T: Tensor, lengths: list[int]) -> DocumentScores:
        """Score each document without noise, dropout and label smoothing, whatever the module's mode.

        Arguments as for `forward`.
        """
        with evaluating(self):
            loss_T, correct_T, _ = self(tokens_T, labels_T, positions_T, lengths, by_token=True)
        per_document = [
            (float(loss_t.double().sum()), int((labels_t != IGNORED).sum()), int(correct_t.sum()))
            for loss_t, labels_t, correct_t in zip(
                loss_T.cpu().split(lengths), labels_T.cpu().split(lengths), correct_T.cpu().split(lengths), strict=True
            )
        ]
        loss_sum, num_supervised, num_correct = zip(*per_document, strict=True)
        return DocumentScores(np.array(loss_sum), np.array(num_supervised), np.array(num_correct))

    @torch.no_grad()
    def route(self, tokens_T: Tensor, labels_T: Tensor, positions_T: Tensor, lengths: list[int]) -> RoutingSums | None:
        """Return what the routers decide without dropout and noise; None if the model has none. Arguments as for
        `forward`."""
        with evaluating(self), autocast_to(self.compute_dtype, tokens_T.device), self.routing.recording():
            if self.path.fused:
                self._hidden(tokens_T, positions_T, lengths)
            else:
                for _ in self._own_logits(tokens_T, labels_T, lengths):
                    pass
        return self.routing.sums()

    def _hidden(self, tokens_T: Tensor, positions_T: Tensor, lengths: list[int]) -> Tensor:
        """Input of the head, [T, H], after the final norm."""
        model = causal_lm(self.model)
        if not self.path.packed:
            return self._unpacked_hidden(tokens_T, lengths)
        with noisy_embeddings(model.get_input_embeddings(), self._noise(), lengths):
            outputs = backbone(model)(
                input_ids=tokens_T[None],
                position_ids=positions_T[None],
                use_cache=False,
                documents=Documents(lengths),
                kernels=self.head_loss.kernels,
                **self.more_inputs(tokens_T, lengths),
            )
        return outputs.last_hidden_state[0]

    def _unpacked_hidden(self, tokens_T: Tensor, lengths: list[int]) -> Tensor:
        """As `_hidden`, from padded batches with the model's own attention."""
        parts, places = [], []
        for batch in self._batches(tokens_T, lengths):
            hidden_BSH = backbone(causal_lm(self.model))(**batch.model_inputs()).last_hidden_state
            parts.append(hidden_BSH[batch.mask_BS])
            places.append(batch.places_n)
        return torch.cat(parts)[torch.cat(places).argsort()]

    def _batches(self, tokens_T: Tensor, lengths: list[int]) -> Iterator[PaddedBatch]:
        """Padded batches, with noise on the embeddings of each while its forward runs."""
        model = causal_lm(self.model)
        # The frequencies of a rotary embedding by document follow from the length of the padded row.
        same_length = not self.path.padded or document_rotary(model) is not None
        options = {"one_batch": self.path.one_batch, "same_length": same_length}
        for batch in padded_batches(tokens_T, lengths, **options):
            self.routing.mask_BS = batch.mask_BS
            with noisy_embeddings(model.get_input_embeddings(), self._noise(), batch.mask_BS.sum(1).tolist()):
                yield batch

    def _own_logits(self, tokens_T: Tensor, labels_T: Tensor, lengths: list[int]) -> Iterator[SupervisedLogits]:
        return own_logits.supervised_logits(causal_lm(self.model), self._batches(tokens_T, lengths), labels_T)

    def _noise(self) -> float | None:
        return self.neftune_alpha if self.training else None

    def more_inputs(self, tokens_T: Tensor, lengths: list[int]) -> dict[str, Tensor]:
        """Return inputs of the model other than tokens and positions; none for causal models."""
        return {}


class HeadLoss(nn.Module):
    """Fused head and loss. A separate module, without the model as a submodule, so that ZeRO-3 gathers the head's
    weights for the duration of this call.

    kernels: of the run. z_loss: weight of the z-loss in training mode.
    """

    def __init__(self, model: nn.Module, kernels: Kernels, z_loss: float = 0.0):
        super().__init__()
        self._model = (model,)  # in a tuple, so that its modules are not counted twice
        self.kernels, self.z_loss = kernels, z_loss

    def forward(
        self, hidden_TH: Tensor, labels_T: Tensor, label_smoothing: float, by_token: bool
    ) -> tuple[Tensor, Tensor]:
        """Return loss sum (fp32 scalar) and number of hits (int64 scalar), or with by_token both per token, fp32 and
        bool [T].

        hidden: [T, H]; labels: int64 [T].
        """
        return self._by_token(hidden_TH, labels_T) if by_token else self._sums(hidden_TH, labels_T, label_smoothing)

    @cached_property
    def transform(self) -> LogitTransform:
        """Scales and soft cap around the head."""
        return logit_transform(causal_lm(self._model[0]))

    def active_z_loss(self) -> float:
        """Return the weight of the z-loss in the present mode."""
        return self.z_loss if self.training else 0.0

    def _sums(self, hidden_TH: Tensor, labels_T: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
        head, transform = head_of(causal_lm(self._model[0])), self.transform
        options = {"label_smoothing": label_smoothing, "soft_cap": transform.soft_cap, "z_loss": self.active_z_loss()}
        linear = _linear_of(head)
        if linear is not None:
            plain, trained = linear
            fused = self.kernels.choose("linear_cross_entropy", hidden_TH)
            options |= {"bias_V": transform.bias(plain.bias), "trained": trained}
            return fused(transform.hidden(hidden_TH), plain.weight, labels_T, **options)
        rows_N = (labels_T != IGNORED).nonzero().squeeze(1)
        logits_NV = transform.logits_of(head, hidden_TH[rows_N])
        plain = self.kernels.choose("cross_entropy", logits_NV)
        return plain(logits_NV, labels_T[rows_N], **options)

    def _by_token(self, hidden_TH: Tensor, labels_T: Tensor) -> tuple[Tensor, Tensor]:
        head, transform = head_of(causal_lm(self._model[0])), self.transform
        linear = _linear_of(head)
        if linear is not None:
            plain, trained = linear
            fused = self.kernels.chosen("linear_cross_entropy", hidden_TH).function is linear_cross_entropy_triton
            options = {"bias_V": transform.bias(plain.bias), "soft_cap": transform.soft_cap, "fused": fused}
            return token_losses(transform.hidden(hidden_TH), with_rows(plain.weight, trained), labels_T, **options)
        num_logits = causal_lm(self._model[0]).config.vocab_size
        loss_T = hidden_TH.new_zeros(len(labels_T), dtype=torch.float32)
        correct_T = torch.zeros_like(labels_T, dtype=torch.bool)
        rows_N = (labels_T != IGNORED).nonzero().squeeze(1)
        num_rows = max(1, CHUNK_BYTES // (4 * num_logits))
        for rows_n in rows_N.tensor_split(max(1, -(-len(rows_N) // num_rows))):  # equal parts, as in token_losses
            logits_nV = transform.logits_of(head, hidden_TH[rows_n]).float()
            if transform.soft_cap is not None:
                logits_nV = transform.soft_cap * torch.tanh(logits_nV / transform.soft_cap)
            loss_T[rows_n] = nn.functional.cross_entropy(logits_nV, labels_T[rows_n], reduction="none")
            correct_T[rows_n] = logits_nV.argmax(-1) == labels_T[rows_n]
        return loss_T, correct_T


def _linear_of(head: nn.Module) -> tuple[nn.Linear, TrainedRows | None] | None:
    """The linear layer that computes logits, and rows that are trained in it alone; None for any other head."""
    return (head, None) if type(head) is nn.Linear else linear_with_rows(head)
