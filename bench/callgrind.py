"""Reads what callgrind writes.

Lines of a callgrind file (https://valgrind.org/docs/manual/cl-format.html): `fl=`, `fi=` and `fe=` name the source file
of what follows, by a number once it was named; `LINE COST` is what was spent there itself; the one after `calls=` is what
the called function spent, and stands with that function already.
"""

import re

# The crypto library gathers entropy from the jitter of clocks, once a thread, as long as it takes to trust it.
BY_CHANCE = "jitterentropy"


def cost(path):
    """Instructions of the whole run, without those whose number is chance."""
    total, chance, files, is_chance, is_call = 0, 0, {}, False, False
    with open(path) as lines:
        for line in lines:
            named = re.match(r"f[lie]=\((\d+)\)(?: (.*))?", line)
            if named:
                if named[2]:
                    files[named[1]] = named[2]
                is_chance = BY_CHANCE in files[named[1]]
            elif line.startswith(("cfl=", "cfi=")):
                called = re.match(r"cf[li]=\((\d+)\) (.*)", line)
                if called:
                    files[called[1]] = called[2]
            elif line.startswith("calls="):
                is_call = True
            elif line[0] in "0123456789+-*":
                if is_call:
                    is_call = False
                    continue
                spent = int(line.split()[1])
                total += spent
                chance += spent if is_chance else 0
    return total - chance
