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
        ("results_wide", "results", "differences", "gains", "labels_saved", "chosen"),
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
        "single",
        "Single images",
        "What the networks of the fresh seeds say of images out-of-fold, that is by networks that were not trained on "
        "that image's label. No test image is among them. The files have more images, and all methods.",
    ),
    Section(
        "search",
        "Search",
        "All search trials; nothing is selected in these figures.",
        ("places", "early_ranks"),
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
    "gains": "Mean gain over all conditions",
    "labels_saved": "Labels saved",
    "chosen": "Chosen configurations",
    "ablation": "Variants",
    "effects": "Effects of the switches",
    "places": "Where the chosen configurations lie in what was searched",
    "early_ranks": "Ranks on the way against the end",
}
CAPTIONS = {
    "differences": "Paired difference in mean per-class accuracy on test, in points. "
    "Holm's p < 0.05 decides; it is corrected over all rows of this table. Seeds and images: the ends for other test "
    f"images, too. By shared seed, with {INTERVALS} that are not corrected for multiple comparisons. p is of the "
    "two-sided paired t test. The sign-flip test, which assumes no distribution but needs many seeds, and "
    "P(better), the share of pairs won (a tie counting one half) with its exact binomial interval, decide nothing. "
    "More pairs needed: to decide with 80 % power, were the mean and spread seen the true ones. Left "
    "out are pairs with other labeled images.",
    "gains": "A method's gain over the reference, averaged over the conditions that all methods share, whole seeds as "
    f"units. {INTERVALS} of the mean over seeds; p is of the t test, with Holm's correction over this table, and "
    "p < 0.05 after it decides. It is about these conditions, and says nothing of others.",
    "labels_saved": "How many labels the reference needs for what a method reaches with fewer, read off the "
    "reference's curve. Straight lines over the logarithm of the labels join its measured counts, seed by seed, and "
    "beyond them nothing is guessed. The interval holds the counts at which the paired t test, not corrected, tells "
    "no difference.",
    "ablation": "Each variant against its frozen reference on the same fresh seeds, on validation images. Holm's "
    "p < 0.05 decides. The study's metric, accuracies in percent, and the paired difference to the reference, with "
    f"{INTERVALS}. Holm's correction of the paired t test is over all rows of a method. The sign-flip test and "
    "P(above), the share of pairs with a higher value with its exact binomial interval, decide nothing. A weight of 0 "
    "is not the supervised baseline: the unlabeled images still reach BatchNorm. The reference was chosen on "
    "validation images, the same ones where the data has a validation part of its own, which favours it a little.",
    "effects": "Full factorial designs: the mean effect of each switch over all settings of the others. Of each pair: "
    f"how much one's effect differs with the other on. Paired by seed, with {INTERVALS}. Holm's correction of the t "
    "test is over all rows of a method.",
    "places": "Place 0 is a domain's lower end, 100 its upper one, on the scale that was searched. At an edge, the "
    "best may lie outside. Five best: from the lowest to the highest value among the five best finished trials, or "
    "how often each choice is among them.",
    "early_ranks": "Spearman's rank correlation of the finished search trials' validation values at an evaluation "
    "with those at the end: low where early stopping could not know what is good. Stopped trials are not in it, so "
    "that it is measured among those that survived.",
    "budget": "Search budget and compute per condition and method. Steps and images count a pretraining that trials "
    "share for each of them, as their budget has it; device-seconds count it once, where it was trained, and without "
    "the time in which others waited for it.",
    "chosen": "The chosen configuration of each condition. Values are the study's metric. "
    "Candidates are the search trials that finished, of those that began.",
    "stability": "How trials ended, search and confirmation together.",
    "trials": "Every trial. Validation values of tuning trials are not results. A given config was known "
    "beforehand: the search did not draw it. Superseded trials confirmed a config that is not the chosen one now, "
    "and enter no number.",
}
MEASURED = ("results_wide", "results", "differences", "gains", "labels_saved")  # need test values


def section_of(stem: str) -> str:
    """The section that shows a table."""
    return next((section.id for section in SECTIONS if stem in section.tables), "more")


def place_of(plot_section: str) -> str:
    """The section that shows a figure which names `plot_section`."""
    known = {section.id for section in SECTIONS}
    return plot_section if plot_section in known else "more"
