"""Long lists are loaded page by page, completely and without duplicates."""

from tests.serving.page.seeds import put_events, put_job, put_run


def test_jobs_are_loaded_page_by_page(page, site):
    jobs = [put_job(site.store, suffix=f"listed-{number}") for number in range(60)]
    page.show("#/jobs")
    page.until(lambda: "listed-59" in page.text("main"))
    assert len(page.all("tbody tr")) == 25
    assert "listed-30 " not in page.text("main")
    page.named("Show older jobs").click()
    page.until(lambda: len(page.all("tbody tr")) == 50)
    page.named("Show older jobs").click()
    page.until(lambda: "listed-0 " in page.text("main"))
    rows = [row.text for row in page.all("tbody tr")]
    assert [next(number for number, row in enumerate(rows) if id in row) for id in reversed(jobs)] == list(range(60))
    later = put_job(site.store, suffix="listed-later")
    page.until(lambda: later in page.text("tbody tr"))
    assert len([row for row in page.all("tbody tr") if "listed-later" in row.text]) == 1


def test_events_are_loaded_back_to_the_first_step(page, site):
    job = put_job(site.store)
    put_events(site.store, job, 430, [f"note {number}" for number in range(70)])
    page.show(f"#/jobs/{job}")
    page.until(lambda: page.run("return document.querySelector('.plot svg')?.dataset.points") == "430")
    assert "Training from 4.998 at step 1 to 4 at step 430" in page.run(
        "return document.querySelector('.plot svg').getAttribute('aria-label')"
    )
    events = "section:last-of-type tbody tr"
    assert len(page.all(events)) == 50
    assert "note 69" in page.all(events)[0].text
    page.named("Show older events").click()
    page.until(lambda: len(page.all(events)) == 70)
    assert "note 0" in page.all(events)[-1].text
    page.labelled("Show step events").click()
    page.until(lambda: len(page.all(events)) == 50)
    for _ in range(9):
        page.named("Show older events").click()
    page.until(lambda: len(page.all(events)) == 500)
    assert page.all(events)[-1].text.endswith("Step 1/430")
    assert page.all("button") == [] or not [one for one in page.all("button") if one.text == "Show older events"]


def test_the_loss_chart_has_a_table_of_its_values(page, site):
    job = put_job(site.store)
    put_events(site.store, job, 12, ["the end"])
    page.show(f"#/jobs/{job}")
    page.until(lambda: page.run("return document.querySelector('.plot svg')?.dataset.points") == "12")
    next(one for one in page.all("summary") if one.text == "Loss as a table").click()
    page.until(lambda: len(page.all("figure tbody tr")) == 12)
    assert page.text("figure tbody tr").split() == ["1", "4.917"]
    assert [cell.text for cell in page.all("figure thead th")] == ["Step", "Training"]


def test_an_unknown_job_shows_an_error(visit, site):
    page = visit(site.url, "404 (Not Found)")
    page.show("#/jobs/ftjob-nobody")
    page.until(lambda: "Could not find fine tune: ftjob-nobody" in page.text("[role=alert]:not([hidden])"))


def test_the_change_of_token_accuracy_is_in_percentage_points(page, site):
    job = put_job(site.store, status="succeeded")
    put_run(site.api.home / "runs" / job)
    page.show(f"#/jobs/{job}")
    # Token accuracy goes from 0 to 4 of 9 tokens in every row.
    change = "+44.4 pp +44.4 pp to +44.4 pp"
    page.until(lambda: any(row.text.endswith(change) for row in page.all("tbody tr")))
