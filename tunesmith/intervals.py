"""How wide an interval is, for every room that states one. Standard library only."""


def student_95(degrees: int) -> float:
    """The 97.5% quantile of Student's t: exact for up to 3 degrees of freedom, within 1e-3 above.

    Expansion about the normal quantile: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5.
    """
    exact = {1: 12.706204736, 2: 4.302652730, 3: 3.182446305}
    if degrees in exact:
        return exact[degrees]
    z = 1.959963984540054
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, start=1))
