"""Parses the output of callgrind.

Lines of a callgrind file (https://valgrind.org/docs/manual/cl-format.html): `fl=`, `fi=` and `fe=` name the source file
of the following lines, by number once it was named. `LINE COST` is the cost of the line itself; the line after `calls=` is the
cost of the called function, which is already counted there.
"""

import re

# The crypto library collects entropy from clock jitter once per thread, for a varying time.
RANDOM_SOURCE = "jitterentropy"


def cost(path):
    """Instructions of the whole run, without those whose number is random."""
    total, random, files, is_random, is_call = 0, 0, {}, False, False
    with open(path) as lines:
        for line in lines:
            named = re.match(r"f[lie]=\((\d+)\)(?: (.*))?", line)
            if named:
                if named[2]:
                    files[named[1]] = named[2]
                is_random = RANDOM_SOURCE in files[named[1]]
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
                random += spent if is_random else 0
    return total - random
