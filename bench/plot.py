"""Draws the results: the gateway's CPU divided by that of the best peer, with the targets."""

import subprocess

import targets

SCRIPT = """
set terminal pngcairo size {width},520 font "sans,11" noenhanced
set output "{output}"
set title "CPU of the gateway divided by that of the best peer, for the same work (lower is better)"
set style data histograms
set style histogram clustered gap 1
set style fill solid 0.85 border -1
set boxwidth 0.9
set yrange [0:{top}]
set ytics 0.2
set bmargin 4
set grid ytics lc rgb "#cccccc"
set key top right horizontal
set xtics rotate by 0
set arrow from graph 0, first 1 to graph 1, first 1 nohead lw 2 lc rgb "#444444"
plot "{data}" using 2:xtic(1) title "vs. the best peer" lc rgb "#4c9f70", \\
  "" using 0:3 with points pt 9 ps 1.4 lc rgb "#b2182b" title "target"
"""


def draw(sections, path):
    """Draws the cases that have peers. Returns whether there were any."""
    rows = []
    for section in sections:
        for peer, ratio in section.figures.get("best", {}).items():
            rows.append(f'"{section.name}\\n{peer}" {ratio} {targets.CPU[section.name]}')
    if not rows:
        return False
    highest = max(float(value) for row in rows for value in row.rsplit(" ", 2)[1:])
    data = path.with_suffix(".dat")
    data.write_text("\n".join(rows) + "\n")
    script = SCRIPT.format(output=path, data=data, width=max(760, 110 * len(rows)), top=max(1.2, highest + 0.15))
    subprocess.run(["gnuplot"], input=script, text=True, check=True)
    data.unlink()
    return True
