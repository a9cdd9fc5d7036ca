"""What doctor found, in lines for a person: about a store, and about a model."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from gradex.checks.integrity import Examination, Fault
from gradex.checks.invariance import Measured, Setting, Skipped
from gradex.checks.oddities import RULE, Duplicates, Outlier, Summary
from gradex.checks.subject import Survey
from gradex.gradients.store import GradientStore
from gradex.reporting.quantities import count, number

ROUNDING = 0.02  # of the tolerance: a loss that moves by more is another loss
SHOWN = 8  # of each kind; doctor.json has more


def store_lines(
    store: GradientStore,
    found: Examination,
    summaries: Sequence[Summary],
    worst: Sequence[Outlier],
    twice: Duplicates,
) -> Iterator[str]:
    """A store from its space to its damage."""
    yield f"{store.path}: {_space(store, found, summaries)}"
    for name, way in list(found.slow_layers.items())[:SHOWN]:
        yield f"slow layer {name}: its gradients were taken by {way}"
    yield from _table(summaries)
    yield from _rows_apart(summaries)
    yield from _outliers(summaries, worst)
    yield from _twice(twice)
    yield from _files(found)


def point_lines(folder: Path, found: Examination) -> Iterator[str]:
    """A store at an earlier point of the meta-training: of the same rows, so only its files."""
    yield f"{folder}: {found.size / 2**20:.1f} MiB"
    yield from _files(found)


def _files(found: Examination) -> Iterator[str]:
    yield from _faults("left over", found.left_over)
    yield from _faults("damaged", found.damage)
    if not found.damage:
        yield "no damage: every file is as its receipt says"


def _space(store: GradientStore, found: Examination, summaries: Sequence[Summary]) -> str:
    rows = {side: sum(s.rows for s in summaries if s.side == side) for side in ("train", "target")}
    space = store.space
    ways = f"{space['dtype']} by {space.get('projector', 'an unnamed projector')}"
    return (
        f"{count(rows['train'])} rows of {len(store.sources)} sources, {count(rows['target'])} of "
        f"{len(store.targets)} targets; {store.dim} dims in {ways}, {found.size / 2**20:.1f} MiB"
    )


def _table(summaries: Sequence[Summary]) -> Iterator[str]:
    shown = summaries[: 5 * SHOWN]
    width = max((len(_label(s)) for s in shown), default=0)
    yield f"{'':<{width}}  {'rows':>8}  {'median norm':>11}  {'max norm':>9}  {'mean loss':>9}"
    for s in shown:
        cells = f"{count(s.good):>8}  {number(s.median_norm):>11}  {number(s.max_norm):>9}"
        yield f"{_label(s):<{width}}  {cells}  {number(s.mean_loss):>9}"
    yield from _more(len(summaries), len(shown))


def _label(summary: Summary) -> str:
    return summary.name if summary.side == "train" else f"{summary.name} (target)"


def _rows_apart(summaries: Sequence[Summary]) -> Iterator[str]:
    """Rows that no estimate reads, or that say nothing."""
    left_out, bad = Counter(), Counter()
    for summary in summaries:
        left_out.update(summary.left_out)
        bad.update(summary.bad)
    yield from (f"rows left out: {count(n)} x {why}" for why, n in left_out.most_common())
    yield from (f"rows that are bad: {count(n)} x {why}" for why, n in bad.most_common())
    zero = {_label(s): s.zero_rows for s in summaries if s.zero_rows}
    if zero:
        most = max(zero, key=lambda name: zero[name])
        total = count(sum(zero.values()))
        yield f"rows with a gradient of 0: {total}, of them {zero[most]} in {most}"


def _outliers(summaries: Sequence[Summary], worst: Sequence[Outlier]) -> Iterator[str]:
    total = sum(s.outliers for s in summaries)
    if total:
        yield f"rows that are outliers: {count(total)} ({RULE})"
    for one in worst[:SHOWN]:
        side = " (target)" if one.side == "target" else ""
        size = f"norm {one.norm:.3g}, {one.times_median:.3g} times the median"
        yield f"  {one.source}{side}, row {one.row}: {size}"
    yield from _more(total, min(SHOWN, len(worst)))


def _twice(twice: Duplicates) -> Iterator[str]:
    if twice.within_a_source:
        yield f"rows that stand in their source again: {count(twice.within_a_source)}"
    if twice.in_several_sources:
        shared = list(twice.shared_by.items())
        words = ", ".join(f"{names}: {n}" for names, n in shared[:SHOWN])
        yield f"rows in several sources: {count(twice.in_several_sources)} ({words})"
    if twice.trained_on_and_in_a_target:
        both = count(twice.trained_on_and_in_a_target)
        yield f"rows trained on and in a target's select or test rows: {both}"
    if twice.equal_gradients:
        equal, example = count(twice.equal_gradients), ", ".join(twice.examples[0][:2])
        yield (
            f"different rows with equal gradients, to the last bit: {equal} ({example}, ...): cut "
            "to the same tokens, perhaps"
        )


def _faults(kind: str, faults: Sequence[Fault]) -> Iterator[str]:
    """The files, under what to do about them."""
    for mend in dict.fromkeys(fault.mend for fault in faults):
        same = [fault.what for fault in faults if fault.mend == mend]
        yield f"{kind} ({len(same)}); {mend}:"
        yield from (f"  {what}" for what in same[:SHOWN])
        yield from _more(len(same), min(SHOWN, len(same)))


def _more(total: int, shown: int) -> Iterator[str]:
    if total > shown:
        yield f"  and {count(total - shown)} more"


def model_lines(found: Survey) -> Iterator[str]:
    """A table of settings, and a sentence for everything that moves a row."""
    lengths = found.lengths
    yield f"{len(lengths)} rows of {min(lengths)} to {max(lengths)} tokens"
    if min(lengths) == max(lengths):
        yield "rows of one length are not padded: name other --tasks"
    yield "gradients: " + ("from one batched pass" if found.is_batched else "a backward a sample")
    for name, way in list(found.slow_layers.items())[:SHOWN] if found.is_batched else ():
        yield f"slow layer {name}: its gradients are taken by {way}"
    yield "largest relative change of a row from alone to in a batch, of it by padding, by company:"
    yield f"  {'setting':<24}  {'loss':>7}  {'gradient':>8}  {'padding':>7}  {'company':>7}"
    for one in found.outcomes:
        if isinstance(one, Skipped):
            yield f"  {_words(one.setting):<24}  not measured: {one.reason}"
            continue
        steps = f"{one.padding.size:>7.0e}  {one.company.size:>7.0e}"
        mark = "" if one.is_within else f"  over {one.setting.tolerance:g}"
        cells = f"{one.batch.loss:>7.0e}  {one.batch.gradient:>8.0e}"
        yield f"  {_words(one.setting):<24}  {cells}  {steps}{mark}"
    yield from explanations(found)


def explanations(found: Survey) -> list[str]:
    """The setting in use, then each other one that breaks batch invariance."""
    measured = {one.setting: one for one in found.outcomes if isinstance(one, Measured)}
    said = [_own(measured[found.own], measured), *_halves(measured, found.own)]
    for setting, one in measured.items():
        exact = measured.get(replace(setting, dtype="float32"), one)
        if setting == found.own or setting.dtype != found.own.dtype or one.is_within:
            continue
        if exact.is_within:  # rounding, which does not tell what else might be the cause
            continue
        if setting.padding == "right":
            said.append(f"{setting.attention} attention: {blame(exact)}")
        elif measured[replace(setting, padding="right")].is_within:
            said.append(_left(exact))
    return list(dict.fromkeys(said))


def _own(one: Measured, measured: dict[Setting, Measured]) -> str:
    if one.is_within:
        return (
            f"a row is the same in every batch that gradex makes ({_words(one.setting)}): within "
            f"{one.batch.size:.0e}"
        )
    exact = measured.get(Setting("float32", one.setting.attention, "right"))
    if one.setting.dtype != "float32" and exact is not None and exact.is_within:
        return f"{one.setting.dtype} is too coarse for this model: {_rounding(one, exact)}"
    return blame(one)


def blame(one: Measured) -> str:
    """Which of the steps from a row alone to a row in a batch moves it."""
    limit = one.setting.tolerance
    if one.company.size > limit and one.company.loss > ROUNDING * limit:
        return (
            f"the rows of a batch see one another: beside others the loss of row "
            f"{one.company.row} moves by {one.company.loss:.0e}, its gradient by "
            f"{one.company.gradient:.0e}"
        )
    if one.padding.size > limit:
        return (
            f"the model reads its padding: with it, on the {one.setting.padding}, row "
            f"{one.padding.row} moves by {one.padding.size:.0e}"
        )
    if one.company.size > limit:
        return (
            f"the batched pass gives row {one.company.row} another gradient than a backward pass "
            f"of its own: {one.company.gradient:.0e} apart"
        )
    return f"row {one.batch.row} moves by {one.batch.size:.0e} in a batch"


def _left(one: Measured) -> str:
    why = "positions do not follow the mask" if one.positions_help else "the padding is read"
    if one.padding.size <= one.setting.tolerance:
        return f"left padding: {blame(one)}"
    return (
        f"left padding moves row {one.padding.row} by {one.padding.size:.0e}: {why}; pad right, as "
        "gradex does"
    )


def _halves(measured: dict[Setting, Measured], own: Setting) -> Iterator[str]:
    """What is the rounding's doing, where both kinds of numbers were measured."""
    exact = measured.get(Setting("float32", own.attention, "right"))
    for one in measured.values():
        same = one.setting.attention == own.attention and one.setting.padding == "right"
        if same and one.setting.dtype != "float32" and exact is not None and exact.is_within:
            yield _rounding(one, exact)


def _rounding(half: Measured, exact: Measured) -> str:
    return (
        f"{half.setting.dtype} moves gradients by {half.batch.gradient:.0e}; float32 keeps them "
        f"within {exact.batch.gradient:.0e}: the rounding does it, not the batch"
    )


def _words(setting: Setting) -> str:
    return f"{setting.dtype}, {setting.attention}, {setting.padding}"
