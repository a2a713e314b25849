"""Write synthetic clinical notes with an outcome. All content is generated; no real notes were used.

    python tools/make_clinical_notes.py NOTES.jsonl [ROWS] [SEED]

Rows: {"text", "label"}, with label readmitted (about one in six) or discharged. The outcome depends on the statements
about support at home, medication and earlier stays, with some noise. Names, dates, telephone and record numbers are
random, for testing de-identification; `notes` also returns them, so that a test can search for them in all files.
"""

import json
import random
import sys
from pathlib import Path

GIVEN = ("Margaret", "Harold", "Anselm", "Theodora", "Ignatius", "Philippa", "Walter", "Beatrice", "Cosmo", "Winifred")
FAMILY = (
    "Quintrell",
    "Osgood",
    "Tremayne",
    "Braddock",
    "Holloway",
    "Pettigrew",
    "Vancleave",
    "Satterthwaite",
    "Okonkwo",
)
DOCTORS = ("Entwistle", "Marchetti", "Rosenblum", "Achterberg", "Dlamini")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October")
ILLNESSES = (
    "heart failure",
    "pneumonia",
    "a hip fracture",
    "cellulitis",
    "a COPD exacerbation",
    "diabetic ketoacidosis",
)
RISKS = (
    "Lives alone and has no help at home.",
    "Admitted twice in the last six months for the same complaint.",
    "Does not take the prescribed medicines regularly and declined the pill box.",
    "Left the last stay against medical advice.",
)
COMFORTS = (
    "Lives with family, who help every day.",
    "First admission in ten years.",
    "Takes all medicines as prescribed and can explain each of them.",
    "A district nurse visits twice a week.",
)
NEUTRAL = (
    "Chest clear on auscultation.",
    "Mobilising with a frame.",
    "Blood pressure 128/76, heart rate 72.",
    "Appetite has returned and pain is controlled.",
    "Follow-up in clinic was arranged.",
)


def note(draw: random.Random) -> tuple[dict[str, str], list[str]]:
    """Return one row, and the identifiers in it that de-identification must remove."""
    given, family, doctor = draw.choice(GIVEN), draw.choice(FAMILY), draw.choice(DOCTORS)
    relative = draw.choice([name for name in GIVEN if name != given])
    record, phone = f"{draw.randint(10_000_000, 99_999_999)}", f"(617) 555-{draw.randint(0, 9999):04d}"
    born = f"{draw.randint(1, 12):02d}/{draw.randint(13, 28)}/{draw.randint(1925, 1958)}"
    admitted = f"{draw.choice(MONTHS)} {draw.randint(4, 28)}, {draw.randint(2020, 2024)}"
    left = f"{draw.randint(2020, 2024)}-{draw.randint(1, 12):02d}-{draw.randint(10, 28)}"
    num_risks = draw.choices((0, 1, 2), (0.6, 0.26, 0.14))[0]
    statements = draw.sample(RISKS, num_risks) + draw.sample(COMFORTS, 2 - num_risks) + draw.sample(NEUTRAL, 2)
    draw.shuffle(statements)
    readmitted = draw.random() < (0.02, 0.2, 0.95)[num_risks]
    text = (
        f"Patient: {given} {family}, MRN: {record}, DOB {born}. {draw.choice(('Mr.', 'Mrs.'))} {family} was admitted "
        f"on {admitted} with {draw.choice(ILLNESSES)} under Dr. {doctor}. {' '.join(statements)} "
        f"{draw.choice(('Daughter', 'Son'))} {relative} {family} can be reached at {phone}. "
        f"Discharged {left}. Signed by Dr. {doctor}."
    )
    row = {"text": text, "label": "readmitted" if readmitted else "discharged"}
    return row, [given, family, doctor, relative, record, phone, phone[-8:], born, admitted, left]


def notes(num_rows: int, seed: int) -> tuple[list[dict[str, str]], set[str]]:
    """Return rows and all identifiers in them: names, dates, telephone and record numbers."""
    draw = random.Random(seed)
    generated = [note(draw) for _ in range(num_rows)]
    return [row for row, _ in generated], {identifier for _, identifiers in generated for identifier in identifiers}


def main() -> None:
    target = Path(sys.argv[1])
    num_rows, seed = (int(text) for text in (*sys.argv[2:4], *("600", "0")[len(sys.argv) - 2 :]))
    rows, _ = notes(num_rows, seed)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    num_readmitted = sum(row["label"] == "readmitted" for row in rows)
    print(f"wrote {len(rows):,} synthetic notes to {target}, {num_readmitted:,} readmitted")


if __name__ == "__main__":
    main()
