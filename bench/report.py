"""The results as Markdown."""

import dataclasses

import targets
from proxies import GATEWAY, OLD, PEERS
from targets import Verdict


@dataclasses.dataclass
class Section:
    """A section of the report."""

    name: str
    what: str
    text: str = ""
    errors: int = 0
    figures: dict = dataclasses.field(default_factory=dict)
    verdicts: list = dataclasses.field(default_factory=list)

    def judge(self, figure, measured, most):
        self.verdicts.append(Verdict(self.name, figure, measured, most))

    def markdown(self):
        return f"### {self.name}\n\n{self.what}\n\n{self.text}"


def table(heads, rows):
    """A Markdown table; all columns but the first are numbers."""
    lines = [heads, ["---", *["--:"] * (len(heads) - 1)], *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def section_of(rounds):
    """The section of a case that all proxies ran."""
    case = rounds.case
    section = Section(case.name, case.what, errors=rounds.errors())
    others = [name for name in (OLD, *PEERS) if name in rounds.slices]
    has_latency = all(each.p50 for slices in rounds.slices.values() for each in slices)
    heads = ["proxy", f"CPU µs per {case.unit}", "min–max", "user", "system", f"{case.unit}s/s", "core busy"]
    heads += (["p50 µs", "p99 µs"] if has_latency else []) + ["errors"] + [f"CPU / {name}" for name in others]
    rows = []
    for name in rounds.slices:
        middle = lambda figure: rounds.median(name, figure)
        row = [name, f"**{middle('cpu'):.2f}**", "{:.2f}–{:.2f}".format(*rounds.span(name, "cpu")),
               f"{middle('user'):.1f}", f"{middle('system'):.1f}", f"{middle('rate'):,.0f}", f"{middle('busy'):.0%}"]
        row += [f"{middle('p50'):,.0f}", f"{middle('p99'):,.0f}"] if has_latency else []
        row += [str(sum(each.errors for each in rounds.slices[name]))]
        row += ["" if other == name else f"{rounds.ratio(name, other):.2f}" for other in others]
        rows.append(row)
    section.text = table(heads, rows)
    if GATEWAY in rounds.slices:
        _judge(section, rounds)
    for name, slices in rounds.slices.items():
        section.figures[name] = [dataclasses.asdict(each) for each in slices]
    section.figures["ratios"] = {name: rounds.ratio(GATEWAY, name) for name in others if GATEWAY in rounds.slices}
    return section


def _judge(section, rounds):
    case = rounds.case.name
    peers = [peer for peer in PEERS if peer in rounds.slices]
    if peers and case in targets.CPU:
        best = best_peer(rounds, "cpu")
        section.figures["best"] = {best: rounds.ratio(GATEWAY, best)}
        section.judge(f"CPU / {best}, the best peer", rounds.ratio(GATEWAY, best), targets.CPU[case])
    if peers and case in targets.LATENCY:
        best = best_peer(rounds, "p99")
        section.judge(f"p99 µs; {best}'s is the target", rounds.median(GATEWAY, "p99"), rounds.median(best, "p99"))
    if case in targets.MICROSECONDS:
        section.judge("CPU µs per request", rounds.median(GATEWAY, "cpu"), targets.MICROSECONDS[case])


def best_peer(rounds, figure):
    """The peer with the lowest median."""
    return min((peer for peer in PEERS if peer in rounds.slices), key=lambda peer: rounds.median(peer, figure))


def document(title, versions, notes, sections, plot):
    """The complete report."""
    verdicts = [verdict for section in sections for verdict in section.verdicts]
    parts = [f"# {title}\n", "".join(f"- {name}: {text}\n" for name, text in versions) + "".join(f"- {n}\n" for n in notes)]
    if verdicts:
        met = sum(verdict.met for verdict in verdicts)
        parts.append(f"## Targets: {met} of {len(verdicts)} met\n")
        parts.append(table(["case", "figure", "measured", "target", ""], [verdict.row() for verdict in verdicts]))
    if plot:
        parts.append(f"![CPU of the gateway, divided by that of the best peer's]({plot})\n")
    parts.append("## Cases\n")
    parts += [section.markdown() for section in sections]
    return "\n".join(parts)
