"""What became of every row: receipts by split and outcome, and the rows that were refused."""

from tunesmith.report.markup import Content, Html, details, section, table, tag
from tunesmith.report.receipts import MAX_REJECTS_SHOWN, SPLITS, Receipts
from tunesmith.report.wording import count, percent, plural, whole

OUTCOMES = {
    "kept": "trained or measured as it is",
    "masked": "kept; some of the assistant's messages have weight 0 and are not trained",
    "truncated": "cut to max_seq_len",
    "duplicate": "left out: equal to an earlier row",
    "dropped": "left out: longer than max_seq_len",
    "rejected": "refused: it could not be read, or is no valid row",
}
_LOOKS = dict(zip(OUTCOMES, "gcebdf", strict=True))


def rows(receipts: Receipts) -> Html:
    title = "Rows"
    if not receipts.num_rows and not receipts.num_rejects:
        return section("rows", title, tag("p", "No receipts yet.", class_="none"))
    total = receipts.sums().rows
    lead = f"{plural(total, 'row')} read; each has one receipt, and the table adds up to them."
    content = [_bar(receipts, total), _table(receipts), _remarks(receipts), _reasons(receipts), _rejects(receipts)]
    return section("rows", title, content, lead=lead)


def _bar(receipts: Receipts, total: int) -> Html:
    """The shares of the outcomes as a bar; the table below says the same in numbers."""
    shares = [(outcome, receipts.sums(outcome).rows) for outcome in _outcomes_of(receipts)]
    parts = [
        tag("i", class_=_LOOKS.get(outcome, "d"), style=f"width:{100 * n / total:.3f}%") for outcome, n in shares if n
    ]
    keys = [
        tag(
            "span",
            tag("i", class_=f"block {_LOOKS.get(outcome, 'd')}"),
            f"{outcome} {percent(n / total)}",
            class_="key",
        )
        for outcome, n in shares
        if n
    ]
    return tag("div", tag("div", parts, class_="bar"), tag("div", keys, class_="legend under"), aria_hidden="true")


def _table(receipts: Receipts) -> Html:
    splits = [split for split in SPLITS if split in receipts.by_outcome]
    head = ["Fate", *(split.capitalize() for split in splits), "All rows", "Tokens", "Supervised", "Meaning"]

    def numbers(*outcomes: str) -> list[str]:
        total = receipts.sums(*outcomes)
        each = [receipts.sums(*outcomes, split=split).rows for split in splits]
        return [count(number) for number in (*each, total.rows, total.tokens, total.supervised_tokens)]

    body: list[list[Content]] = [
        [outcome, *numbers(outcome), tag("span", OUTCOMES.get(outcome, ""), class_="note")]
        for outcome in _outcomes_of(receipts)
    ]
    body.append([tag("b", "Sum"), *(tag("b", number) for number in numbers()), ""])
    return table("Rows by fate and split", head, body, numeric=range(1, len(splits) + 4))


def _remarks(receipts: Receipts) -> Html | None:
    """What the table leaves out: duplicates that were kept, tokens that were cut off, lengths, padding."""
    told = []
    if kept := receipts.num_duplicates - receipts.sums("duplicate").rows:
        told.append(f"{plural(kept, 'row')} that equal an earlier one were kept.")
    if receipts.lost_tokens:
        lost = f"{plural(receipts.lost_tokens, 'token')} ({count(receipts.lost_supervised_tokens)} supervised)"
        told.append(f"Cutting long rows lost {lost}.")
    splits = receipts.summary.get("splits")
    train = splits.get("train") if isinstance(splits, dict) else None
    if isinstance(train, dict) and isinstance(lengths := train.get("length_percentiles"), dict) and lengths:
        told.append(f"A training row has {lengths.get('p50')} tokens in the median, {lengths.get('max')} at most.")
    if isinstance(train, dict) and train.get("padding_share") is not None:
        packed = f"{count(train.get('documents'))} rows into {plural(whole(train.get('samples')), 'sample')}"
        told.append(f"Packing laid {packed}; {percent(train['padding_share'], 2)} of their room stays empty.")
    return tag("p", " ".join(told), class_="note") if told else None


def _reasons(receipts: Receipts) -> Html | None:
    if not receipts.reasons:
        return None
    body = [[reason, count(number)] for reason, number in receipts.reasons.most_common(12)]
    return details("Why rows were not simply kept", table("Reasons", ["Reason", "Rows"], body, numeric=(1,)))


def _rejects(receipts: Receipts) -> Html | None:
    if not receipts.rejects:
        return None
    body = [
        [
            tag("span", f"{reject.get('source')}:{reject.get('line')}", class_="mono nowrap"),
            tag("span", reject.get("reason"), class_="wrap"),
            tag("span", reject.get("remedy"), class_="wrap"),
            tag("code", reject.get("text"), class_="wrap"),
        ]
        for reject in receipts.rejects
    ]
    more = receipts.num_rejects - len(receipts.rejects)
    left = tag("p", f"{plural(more, 'more row')} in receipts/rejects.jsonl.", class_="note") if more > 0 else None
    shown = table("Refused rows", ["File and line", "Reason", "What to do", "Beginning of the row"], body)
    summary = f"{plural(receipts.num_rejects, 'refused row')}" + (
        f", the first {MAX_REJECTS_SHOWN}" if more > 0 else ""
    )
    return details(summary, shown, left, open_=receipts.num_rejects <= 10)


def _outcomes_of(receipts: Receipts) -> list[str]:
    """Known outcomes first, in the order of OUTCOMES, then any other that occurs."""
    present = {outcome for split in receipts.by_outcome.values() for outcome in split}
    return [outcome for outcome in OUTCOMES if outcome in present] + sorted(present - OUTCOMES.keys())
