"""The parts of the report in order: what each shows, and what is said above its tables.

A part is on the page where it has a table with rows, a figure or a text of its own. To add a table:
its stem here, its columns in `display.COLUMNS`, its numbers in `report.all_tables`.
"""

from __future__ import annotations

from dataclasses import dataclass

from analysis.words.display import INTERVALS


@dataclass(frozen=True)
class Section:
    """A part of the page. `tables` are stems; figures name the section themselves (`Plot.section`)."""

    id: str
    title: str
    intro: str = ""
    tables: tuple[str, ...] = ()


CHOSEN = "Figures of chosen configurations: the selection rule chose them on validation data."
SECTIONS = (
    Section(
        "results",
        "Results",
        "Test accuracy of the confirmed configurations. Open the seeds of a row to get to its trials.",
        ("results_wide", "results", "differences", "aggregate", "ranks", "chosen"),
    ),
    Section("efficiency", "Label efficiency", CHOSEN),
    Section("errors", "Errors and calibration", CHOSEN),
    Section(
        "ablation",
        "Ablation",
        "Variants of each frozen reference on the same fresh seeds, scored on validation images. "
        "Test data was not opened for any of them.",
        ("ablation", "effects"),
    ),
    Section("training", "Training curves", CHOSEN),
    Section("diagnostics", "Diagnostics", CHOSEN),
    Section(
        "sees",
        "What the model sees",
        "Of the network that each condition's first fresh seed trained; no test image is among them. "
        "A row of neighbours starts with the query; classes other than its own are underlined.",
    ),
    Section(
        "search",
        "Search",
        "All search trials; nothing is selected in these figures.",
        ("early_ranks",),
    ),
    Section(
        "importance",
        "Hyperparameter importance",
        "Exploratory: what the search trials suggest, not a test of anything.",
    ),
    Section(
        "stability",
        "Stability",
        "A trial that was stopped early is censored, not scored; a diverged or collapsed trial is "
        "counted, not dropped.",
        ("stability",),
    ),
    Section(
        "compute",
        "Compute",
        "Steps, images and device-seconds are of trials that ended.",
        ("budget",),
    ),
    Section("more", "More"),
    Section(
        "trials",
        "All trials",
        "Open a trial for its digest, its seed and the command that trains it again.",
        ("trials",),
    ),
    Section("provenance", "Selection and provenance"),
    Section("intervals", "How to read the intervals"),
)
TITLES = {
    "results_wide": "At a glance",
    "results": "Per condition and method",
    "differences": "Paired differences",
    "aggregate": "Over all conditions",
    "ranks": "Average ranks",
    "chosen": "Chosen configurations",
    "ablation": "Variants",
    "effects": "Effects of the switches",
    "early_ranks": "Ranks on the way against the end",
}
CAPTIONS = {
    "differences": "Mean paired difference in mean per-class accuracy on test, in points, by "
    f"shared seed, with {INTERVALS} that are not corrected for multiple comparisons. p is of the "
    "two-sided paired t test; Holm's correction is over all rows of this table, and p < 0.05 after it "
    "decides. The sign-flip test, which assumes no distribution but needs many seeds, and P(better), the "
    "share of pairs won (a tie counting one half) with its exact binomial interval, decide nothing. "
    "More pairs needed: to decide with 80 % power, were the mean and spread seen the true ones. Left "
    "out are pairs with other labeled images.",
    "aggregate": "Over the conditions and seeds that all methods share: the interquartile mean (IQM, "
    "the mean of the middle half of all scores) of mean per-class accuracy on test, with its "
    "interval from resampled seeds (95 %, but too narrow below 5 of them); the mean over conditions; "
    "and the average rank, 1 being best. "
    "These conditions only: the interval says nothing about others.",
    "ranks": "Average ranks over conditions of the mean over seeds, 1 being best. Methods that share a "
    "letter do not differ: their ranks are less than Nemenyi's critical difference apart, or "
    "Friedman's test finds no difference among all (Demsar 2006, alpha = 0.05). Conditions of one "
    "data set are not independent, which makes these tests too sure.",
    "ablation": "Variants of each frozen reference on the same fresh seeds: the study's metric on "
    f"validation images, accuracies in percent, and the paired difference to the reference, with {INTERVALS}. "
    "Holm's correction of the paired t test is over all rows of a method, and p < 0.05 after it "
    "decides. The sign-flip test and P(above), the share of pairs with a higher value with its exact "
    "binomial interval, decide nothing. A weight of 0 is not the supervised "
    "baseline: the unlabeled images still reach BatchNorm. The reference was chosen on validation "
    "images, the same ones where the data has a validation part of its own, which favours it a little.",
    "effects": "Full factorial designs: the mean effect of each switch over all settings of the "
    "others, and of each pair how much one's effect differs with the other on; paired by seed, with "
    f"{INTERVALS}. Holm's correction of the t test is over all rows of a method.",
    "early_ranks": "Spearman's rank correlation of the finished search trials' validation values at an evaluation "
    "with those at the end: low where early stopping could not know what is good. Stopped trials are not in it, so "
    "that it is measured among those that survived.",
    "budget": "Search budget and compute per condition and method.",
    "chosen": "The chosen configuration of each condition. Values are the study's metric. "
    "Candidates are the search trials that finished, of those that began.",
    "stability": "How trials ended, search and confirmation together.",
    "trials": "Every trial. Validation values of tuning trials are not results. A given config was known "
    "beforehand: the search did not draw it. Superseded trials confirmed a config that is not the chosen one now, "
    "and enter no number.",
}
MEASURED = ("results_wide", "results", "differences", "aggregate", "ranks")  # need test values


def section_of(stem: str) -> str:
    """The section that shows a table."""
    return next((section.id for section in SECTIONS if stem in section.tables), "more")


def place_of(plot_section: str) -> str:
    """The section that shows a figure which names `plot_section`."""
    known = {section.id for section in SECTIONS}
    return plot_section if plot_section in known else "more"
