"""Row outcomes: receipts by split and outcome, and the rejected rows."""

from tunesmith.report.markup import Content, Html, details, section, table, tag, term
from tunesmith.report.receipts import MAX_REJECTS_SHOWN, SPLITS, Receipts
from tunesmith.report.wording import count, omissions, percent, plural, whole

OUTCOMES = {
    "kept": "used unchanged",
    "masked": "kept; assistant messages with weight 0 are excluded from the loss",
    "truncated": "truncated to max_seq_len",
    "duplicate": "excluded: equal to an earlier row",
    "dropped": "excluded: longer than max_seq_len",
    "rejected": "excluded: unreadable or invalid",
    "unselected": "excluded: more rows than max_rows of the data set",
}
_LOOKS = dict(zip(OUTCOMES, "gcebdfa", strict=True))


def rows(receipts: Receipts) -> Html:
    title = "Row outcomes"
    if not receipts.num_rows and not receipts.num_rejects:
        return section("rows", title, tag("p", "No receipts yet.", class_="none"))
    total = receipts.sums().rows
    lead = f"{plural(total, 'row')} read. Each has exactly one outcome, recorded in its receipt."
    content = [_bar(receipts, total), _table(receipts), _notes(receipts), _reasons(receipts), _rejects(receipts)]
    return section("rows", title, content, lead=lead)


def _bar(receipts: Receipts, total: int) -> Html:
    """Fractions of the outcomes as a bar; the table below has the numbers."""
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
    supervised = term("Supervised", "Tokens that contribute to the loss.")
    head = ["Outcome", *(split.capitalize() for split in splits), "All rows", "Tokens", supervised, "Meaning"]

    def numbers(*outcomes: str) -> list[str]:
        total = receipts.sums(*outcomes)
        each = [receipts.sums(*outcomes, split=split).rows for split in splits]
        return [count(number) for number in (*each, total.rows, total.tokens, total.supervised_tokens)]

    body: list[list[Content]] = [
        [outcome, *numbers(outcome), tag("span", OUTCOMES.get(outcome, ""), class_="note")]
        for outcome in _outcomes_of(receipts)
    ]
    body.append([tag("b", "Total"), *(tag("b", number) for number in numbers()), ""])
    return table("Rows by outcome and split", head, body, numeric=range(1, len(splits) + 4))


def _notes(receipts: Receipts) -> Html | None:
    """Details that are not in the table: duplicates that were kept, truncated tokens, lengths, padding,
    and values that the chat template omits."""
    notes = []
    if kept := receipts.num_duplicates - receipts.sums("duplicate").rows:
        notes.append(f"{plural(kept, 'duplicate row')} kept.")
    if receipts.lost_tokens:
        lost = f"{plural(receipts.lost_tokens, 'token')} ({count(receipts.lost_supervised_tokens)} supervised)"
        notes.append(f"Truncation removed {lost}.")
    if special := whole(receipts.summary.get("special_token_rows")):
        notes.append(f"{plural(special, 'row')} with special tokens in their content.")
    splits = receipts.summary.get("splits")
    train = splits.get("train") if isinstance(splits, dict) else None
    if isinstance(train, dict) and isinstance(lengths := train.get("length_percentiles"), dict) and lengths:
        notes.append(f"Tokens per training row: median {lengths.get('p50')}, maximum {lengths.get('max')}.")
    if isinstance(train, dict) and train.get("padding_share") is not None:
        packed = f"{count(train.get('documents'))} rows packed into {plural(whole(train.get('samples')), 'sample')}"
        notes.append(f"{packed}, {percent(train['padding_share'], 2)} padding.")
    omitted = receipts.summary.get("omitted")
    warning = None
    if isinstance(omitted, dict) and omitted:
        warning = tag("p", tag("b", "Warning: "), f"the chat template omits {omissions(omitted)}.")
    return tag("div", warning, tag("p", " ".join(notes), class_="note") if notes else None)


def _reasons(receipts: Receipts) -> Html | None:
    if not receipts.reasons:
        return None
    body = [[reason, count(number)] for reason, number in receipts.reasons.most_common(12)]
    return details(
        "Reasons for truncated, excluded and incomplete rows", table("Reasons", ["Reason", "Rows"], body, numeric=(1,))
    )


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
    shown = table("Rejected rows", ["File and line", "Reason", "Remedy", "Start of the row"], body)
    summary = plural(receipts.num_rejects, "rejected row")
    if more > 0:
        summary += f", the first {MAX_REJECTS_SHOWN}"
    return details(summary, shown, left, open_=receipts.num_rejects <= 10)


def _outcomes_of(receipts: Receipts) -> list[str]:
    """Known outcomes in the order of OUTCOMES, then all others."""
    present = {outcome for split in receipts.by_outcome.values() for outcome in split}
    return [outcome for outcome in OUTCOMES if outcome in present] + sorted(present - OUTCOMES.keys())
