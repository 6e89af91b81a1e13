# SPDX-License-Identifier: Apache-2.0
"""Medians, ratios and aims as Markdown, and their place in docs/performance.md."""

import re
import textwrap
from dataclasses import dataclass
from statistics import median

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"


@dataclass(frozen=True)
class Row:
    """One comparison. `theirs` are alternatives, the fastest counts; `aim` is a factor, of speed or of time."""

    what: str
    theirs: tuple
    ours: str
    aim: float = None
    work: str = None  # perf.py's name of it


def orbax_full(dataset):
    return tuple(f"{dataset} full orbax {way} warm" for way in ("standard_numpy", "pytree", "pytree_numpy"))


def leaf_rows(dataset, large, small, aims):
    theirs = {size: (f"{dataset} leaf_{size} orbax partial warm",) for size in ("large", "small")}
    return [
        Row(
            f"{text}{label}",
            theirs[size],
            f"{dataset} leaf_{size} ckptfs load {state}",
            aims.get(size) if state != "again" else None,
            f"leaf {size}",
        )
        for size, text in (("large", large), ("small", small))
        for state, label in (("fresh", ", fresh mount"), ("first", ", first read"), ("again", ", read again"))
    ]


AGAINST_ORBAX = [
    Row("full restore, first read", orbax_full("float32"), "float32 full ckptfs threads first", 1.5, "full first"),
    Row("full restore, read again", orbax_full("float32"), "float32 full ckptfs threads again", 4, "full again"),
    Row("full restore, cold", ("float32 full orbax pytree_numpy cold",), "float32 full ckptfs threads cold"),
    *leaf_rows("float32", "a 16 MB leaf", "a 4 KB leaf", {"large": 1.5, "small": 20}),
    Row("a 16 MB leaf, cold", ("float32 leaf_large orbax partial cold",), "float32 leaf_large ckptfs load cold"),
    Row("a 4 KB leaf, cold", ("float32 leaf_small orbax partial cold",), "float32 leaf_small ckptfs load cold"),
    Row(
        "shell: `cat` of a 16 MB leaf, fresh mount",
        ("float32 shell_large orbax python warm",),
        "float32 shell_large ckptfs cat fresh",
        100,
        "shell",
    ),
    Row(
        "shell: `cat` of a 4 KB leaf, fresh mount",
        ("float32 shell_small orbax python warm",),
        "float32 shell_small ckptfs cat fresh",
        100,
        "shell",
    ),
    Row(
        "the tree: `find` (Orbax: `metadata()`)",
        ("float32 listing orbax metadata warm",),
        "float32 listing ckptfs find first",
    ),
    Row(
        "the tree: `ls -lR` (Orbax: `metadata()`)",
        ("float32 listing orbax metadata warm",),
        "float32 listing ckptfs ls first",
    ),
    Row("bfloat16: full restore, first read", orbax_full("bfloat16"), "bfloat16 full ckptfs threads first"),
    Row("bfloat16: full restore, read again", orbax_full("bfloat16"), "bfloat16 full ckptfs threads again"),
    *leaf_rows("bfloat16", "bfloat16: an 8 MB leaf", "bfloat16: a 2 KB leaf", {}),
    Row(
        "10,000 leaves of 1 KB: full restore, first read",
        ("small full orbax pytree_numpy warm",),
        "small files ckptfs read first",
    ),
    Row(
        "10,000 leaves: `find` (Orbax: `metadata()`)",
        ("small listing orbax metadata warm",),
        "small listing ckptfs find first",
    ),
]

AGAINST_EXT4 = [
    Row(
        "49 large leaves, `read` of 1 MiB, first read",
        ("float32 large ext4 read warm",),
        "float32 large ckptfs read first",
    ),
    Row(
        "49 large leaves, `read` of 1 MiB, read again",
        ("float32 large ext4 read warm",),
        "float32 large ckptfs read again",
        3,
        "large again",
    ),
    Row(
        "49 large leaves, `np.load`, read again",
        ("float32 large ext4 load warm",),
        "float32 large ckptfs load again",
        3,
        "large again",
    ),
    Row(
        "all leaves, `np.load` by threads, first read",
        ("float32 full ext4 threads warm",),
        "float32 full ckptfs threads first",
    ),
    Row(
        "all leaves, `np.load` by threads, read again",
        ("float32 full ext4 threads warm",),
        "float32 full ckptfs threads again",
    ),
    Row(
        "all leaves, `np.load` by threads, cold",
        ("float32 full ext4 threads cold",),
        "float32 full ckptfs threads cold",
    ),
    Row(
        "a 16 MB leaf, `np.load`, read again",
        ("float32 leaf_large ext4 load warm",),
        "float32 leaf_large ckptfs load again",
    ),
    Row(
        "a 4 KB leaf, `np.load`, read again",
        ("float32 leaf_small ext4 load warm",),
        "float32 leaf_small ckptfs load again",
    ),
    Row(
        "10,000 small leaves, first read, not listed before",
        ("small files ext4 read warm",),
        "small files ckptfs read first",
    ),
    Row(
        "10,000 small leaves, first read, after a walk",
        ("small files ext4 read warm",),
        "small files ckptfs read walked",
    ),
    Row(
        "10,000 small leaves, read again",
        ("small files ext4 read warm",),
        "small files ckptfs read again",
        3,
        "small again",
    ),
    Row(
        "10,000 small leaves, `np.load`, read again",
        ("small files ext4 load warm",),
        "small files ckptfs load again",
        3,
        "small again",
    ),
    *(
        Row(
            f"`{command}` of {text}, {label}",
            (f"{dataset} listing ext4 {way} warm",),
            f"{dataset} listing ckptfs {way} {state}",
        )
        for dataset, text in (("float32", "146 leaves"), ("small", "10,000 leaves"))
        for way, command in (("find", "find"), ("ls", "ls -lR"))
        for state, label in (("first", "fresh mount"), ("again", "again"))
    ),
]


def store_full(codec, state):
    return f"float32 store ckptfs {codec} {state}"


STORE_ORBAX = ("float32 store orbax pytree", "float32 store orbax pytree_numpy")
STORE_AGAINST_ORBAX = [
    Row(
        "durable save, float32 (`cp -r` and the committing rename)",
        ("float32 save orbax",),
        "float32 save ckptfs auto cp",
        2,
    ),
    Row("the same, `np.save` of each leaf", ("float32 save orbax",), "float32 save ckptfs auto np.save"),
    Row("the same, uncompressed (`codec=none`)", ("float32 save orbax",), "float32 save ckptfs none cp"),
    Row("durable save, bfloat16", ("bfloat16 save orbax",), "bfloat16 save ckptfs auto cp"),
    Row("full restore from the store, first read", STORE_ORBAX, store_full("auto", "first"), 3),
    Row("full restore from the store, read again", STORE_ORBAX, store_full("auto", "again"), 4),
    Row("full restore from the store, cold", ("float32 store orbax cold",), store_full("auto", "cold")),
]
STORE_AGAINST_EXT4 = [
    Row(
        "durable save (`cp -r`, then the rename; ext4: then syncfs)",
        ("float32 save ext4 cp",),
        "float32 save ckptfs auto cp",
        1.5,
    ),
    Row("the same, uncompressed", ("float32 save ext4 cp",), "float32 save ckptfs none cp"),
    Row("`np.save` of each leaf, durable", ("float32 save ext4 np.save",), "float32 save ckptfs auto np.save"),
    Row(
        "durable save against safetensors' `save_file` and fsync",
        ("float32 save safetensors",),
        "float32 save ckptfs auto cp",
    ),
    Row("full restore, compressed, first read", ("float32 store ext4",), store_full("auto", "first")),
    Row("full restore, compressed, read again", ("float32 store ext4",), store_full("auto", "again")),
    Row("full restore, compressed, cold", ("float32 store ext4 cold",), store_full("auto", "cold")),
    Row(
        "full restore, uncompressed with passthrough, first read",
        ("float32 store ext4",),
        store_full("none", "first"),
        1.5,
    ),
    Row(
        "full restore, uncompressed with passthrough, read again",
        ("float32 store ext4",),
        store_full("none", "again"),
        1.2,
    ),
    Row(
        "49 large leaves, `read` of 1 MiB, passthrough, first read",
        ("float32 store read ext4",),
        "float32 store read ckptfs none first",
        1.5,
    ),
    Row(
        "49 large leaves, `read` of 1 MiB, passthrough, read again",
        ("float32 store read ext4",),
        "float32 store read ckptfs none again",
        1.2,
    ),
]


def store_facts(result):
    lines = []
    for dataset, plain in (("float32", 736), ("bfloat16", 368)):
        sizes = {
            side: middle(result, f"{dataset} bytes {side}")
            for side in ("orbax", "safetensors", "ckptfs auto", "ckptfs none")
        }
        if all(sizes.values()):
            lines.append(
                f"- Bytes of the {dataset} tree on disk: "
                + ", ".join(f"{side} {size / 1e6:,.0f} MB" for side, size in sizes.items())
                + f" (aim: fewer than Orbax, {'met' if sizes['ckptfs auto'] < sizes['orbax'] else '**missed**'})"
            )
    copy, payload = middle(result, "float32 copy ckptfs"), middle(result, "float32 copy ckptfs payload")
    if copy is not None:
        lines.append(
            f"- `cp -r` of the 736 MB step in the mount, and its commit: {milliseconds(copy)} ms, "
            f"{payload or 0:,.0f} new bytes of payload "
            f"(aim: under a second and none, {'met' if copy < 1 and not payload else '**missed**'})"
        )
    for way in ("rename", "sync"):
        waits = {
            what: middle(result, f"waiting {what} {way}")
            for what in ("ls", "read", "ls of the commit", "read of the commit", "whole")
        }
        if waits["ls"] is not None:
            worst = max(waits["ls"], waits["read"])
            lines.append(
                f"- While 2.2 GB are written and committed by {way} ({waits['whole']:.1f} s): "
                f"the slowest `ls MOUNT` took {milliseconds(waits['ls'])} ms "
                f"({milliseconds(waits['ls of the commit'])} ms during the committing call), "
                f"the slowest 4 KB read of another step {milliseconds(waits['read'])} ms "
                f"({milliseconds(waits['read of the commit'])} ms) "
                f"(aim: under 100 ms, {'met' if worst < 0.1 else '**missed**'})"
            )
    for what, name in (
        ("a save of 736 MB", "float32 save ckptfs auto memory"),
        ("writing 2.2 GB steps", "waiting memory"),
    ):
        high = middle(result, name)
        if high:
            lines.append(f"- Daemon's peak resident memory, {what}: {high / 2**20:.0f} MiB")
    return lines


ASYNC_SIDES = {
    "orbax": "Orbax's `AsyncCheckpointer` to ext4",
    "ckptfs": "`ckptfs.AsyncCheckpointer` to a mount",
    "files": "Orbax's `AsyncCheckpointer` to `MOUNT/.files`",
}


def asynchronous(result):
    """The loop that saves in the background."""
    lines = [
        "| | `save` waits, ms | at most, ms | step there after, ms | steps/s alone | beside a save | whole loop, ms |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    found = {
        side: {
            what: result["samples"].get(f"float32 async {side} {what}")
            for what in ("blocked", "saved", "alone", "beside", "whole")
        }
        for side in ASYNC_SIDES
    }
    for side, text in ASYNC_SIDES.items():
        of = found[side]
        if of["blocked"]:
            lines.append(
                f"| {text} | {milliseconds(median(of['blocked']))} | {milliseconds(max(of['blocked']))} "
                f"| {milliseconds(median(of['saved']))} | {1 / median(of['alone']):.1f} "
                f"| {1 / median(of['beside']):.1f} | {milliseconds(median(of['whole']))} |"
            )
    theirs, ours = found["orbax"]["blocked"], found["ckptfs"]["blocked"]
    if theirs and ours:
        ratio = median(ours) / median(theirs)
        lines += [
            "",
            f"The loop waits for the client {ratio:.2f}x as long as for Orbax "
            f"(aim: at most 1x, {'met' if ratio <= 1 else '**missed**'})",
        ]
    return lines


ORBAX_WAYS = {
    "standard_numpy": "`StandardCheckpointer().restore(path, target)`, NumPy arrays as target",
    "pytree": "`PyTreeCheckpointer().restore(path)`, JAX arrays",
    "pytree_numpy": "`PyTreeCheckpointer().restore(path, restore_args=…)`, NumPy arrays",
}
FILE_WAYS = {
    "threads": "`np.load` of each leaf by a thread pool, one thread a CPU (the headline)",
    "serial": "`np.load` of each leaf, one after another",
    "into_threads": "read into arrays that exist, by the same thread pool",
}


def middle(result, name):
    values = result["samples"].get(name)
    return median(values) if values else None


def fastest(result, names):
    return min((value for value in (middle(result, name) for name in names) if value), default=None)


def milliseconds(seconds):
    if seconds is None:
        return "–"
    value = seconds * 1000
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def factor(value):
    return "–" if value is None else f"{value:,.0f}x" if value >= 20 else f"{value:.1f}x"


def judge(result, row, faster):
    """(theirs, ours, ratio, met): the ratio is of speed against Orbax, of time against ext4."""
    theirs, ours = fastest(result, row.theirs), middle(result, row.ours)
    if not theirs or not ours:
        return theirs, ours, None, None
    ratio = theirs / ours if faster else ours / theirs
    met = None if row.aim is None else ratio >= row.aim if faster else ratio <= row.aim
    return theirs, ours, ratio, met


def missed(result):
    """What perf.py shall look at."""
    rows = [(row, True) for row in AGAINST_ORBAX] + [(row, False) for row in AGAINST_EXT4]
    return sorted({row.work for row, faster in rows if judge(result, row, faster)[3] is False})


def table(result, rows, faster):
    names = ("Orbax", "faster by", "at least") if faster else ("ext4", "takes", "at most")
    lines = [f"| | {names[0]}, ms | ckptfs, ms | {names[1]} | aim | |", "|---|--:|--:|--:|--:|---|"]
    for row in rows:
        theirs, ours, ratio, met = judge(result, row, faster)
        if theirs is None and ours is None:
            continue
        aim = f"{names[2]} {row.aim:g}x" if row.aim else ""
        verdict = {None: "", True: "met", False: "**missed**"}[met]
        lines.append(
            f"| {row.what} | {milliseconds(theirs)} | {milliseconds(ours)} | {factor(ratio)} | {aim} | {verdict} |"
        )
    return lines


def ways(result):
    lines = ["| full restore, float32 | first, ms | again, ms |", "|---|--:|--:|"]
    for way, text in ORBAX_WAYS.items():
        lines.append(f"| Orbax: {text} | {milliseconds(middle(result, f'float32 full orbax {way} warm'))} | |")
    for way, text in FILE_WAYS.items():
        first, again = (middle(result, f"float32 full ckptfs {way} {state}") for state in ("first", "again"))
        lines.append(f"| ckptfs: {text} | {milliseconds(first)} | {milliseconds(again)} |")
    for way, text in FILE_WAYS.items():
        lines.append(f"| ext4: {text} | | {milliseconds(middle(result, f'float32 full ext4 {way} warm'))} |")
    return lines


def processor_time(result):
    """CPU seconds of the fastest way of Orbax and of the headline, asker and daemon."""
    cpu, samples = result["cpu"], result["samples"]
    orbax = [median(cpu[name]) for name in orbax_full("float32") if name in cpu]
    lines = [f"- CPU time of a full restore: Orbax {min(orbax):.2f} s"] if orbax else []
    for state in ("first", "again"):
        name = f"float32 full ckptfs threads {state}"
        if name in cpu and f"{name} daemon_cpu" in samples:
            lines.append(
                f"- CPU time of a full restore, {'first read' if state == 'first' else 'read again'}: reader "
                f"{median(cpu[name]):.2f} s, daemon {median(samples[f'{name} daemon_cpu']):.2f} s"
            )
    return lines


def find_number(stats, *words):
    """The number whose name has all the words, wherever it is in stats.json."""
    for key, value in stats.items():
        if isinstance(value, dict):
            found = find_number(value, *words)
            if found is not None:
                return found
        elif isinstance(value, (int, float)) and all(word in key for word in words):
            return value
    return None


def grown(pair, *words):
    before, after = (find_number(pair[when], *words) for when in ("before", "after"))
    return None if after is None else after - (before or 0)


def laziness(result):
    lines = []
    found = result.get("laziness", {})
    if "leaf" in found:
        before, total = (find_number(found["leaf"][when], "fetched") for when in ("before", "after"))
        verdict = "" if total is None else ", met" if total < 1 << 20 else ", **missed**"
        lines.append(
            f"- One 4 KB leaf on a fresh mount: {total:,} bytes fetched from the source in all, {before:,} of "
            f"them by the mount itself (aim: less than 1 MiB{verdict})"
        )
    if "listing" in found:
        total, chunks = find_number(found["listing"]["after"], "fetched"), grown(found["listing"], "chunks")
        lines.append(
            f"- `ls -lR` of all 146 leaves on a fresh mount: {total:,} bytes fetched, {chunks} chunks decoded "
            f"(aim: none{', met' if chunks == 0 else ', **missed**'})"
        )
    return lines


def facts(result):
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"- {result['time']}: {machine['cpus']} CPUs ({machine['model']}), {machine['memory'] / 2**30:.0f} GiB, "
        f"Linux {machine['kernel']}, {machine['filesystem']}; Python {machine['python']}, {versions}",
        f"- {result['rounds']} rounds; load average {result['load_before'][0]:.1f} before, "
        f"{result['load_after'][0]:.1f} after",
    ]
    mount = middle(result, "float32 mount ckptfs")
    if mount:
        lines.append(f"- `ckptfs mount` until it answers: {milliseconds(mount)} ms")
    for name, text in (("float32", "736 MB"), ("small", "10,000 leaves")):
        high = result["high_water"].get(name)
        if high:
            lines.append(f"- Daemon's peak resident memory, {text}: {high / 2**20:.0f} MiB")
    return lines + processor_time(result) + laziness(result)


def profiles(result):
    lines = []
    for name, rows in result.get("profiles", {}).items():
        lines += ["", f"Where the time goes, {name} (perf, percent of both CPUs):", ""]
        lines += [f"- {row['percent']:.1f} % {row['process']}: `{row['function']}` ({row['where']})" for row in rows]
    return lines


def failures(result):
    return [f"- failed: {name}: {error}" for name, error in result["errors"].items()]


def render(result):
    parts = [
        ["### Against Orbax (its own checkpoint)", ""] + table(result, AGAINST_ORBAX, True),
        ["### Against plain .npy files on ext4", ""] + table(result, AGAINST_EXT4, False),
        ["### The store against Orbax", ""] + table(result, STORE_AGAINST_ORBAX, True),
        ["### The store against plain files on ext4", ""] + table(result, STORE_AGAINST_EXT4, False),
        [""] + store_facts(result),
        ["### Saves in the background", ""] + asynchronous(result),
        ["### Ways to restore everything", ""] + ways(result),
        ["### Facts", ""] + facts(result) + failures(result) + profiles(result),
    ]
    return "\n\n".join("\n".join(part) for part in parts)


def wrapped(lines):
    """The lines of a page, sentences and items of lists within 118 columns. Tables stay as they are."""
    for line in lines:
        if line.startswith("|") or len(line) <= 118:
            yield line
        else:
            indent = "  " if line.startswith("- ") else ""
            yield from textwrap.wrap(
                line, 118, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
            )


def publish(text, path):
    with open(path) as file:
        page = file.read()
    text = "\n".join(wrapped(text.split("\n")))
    pattern = re.compile(re.escape(BEGIN) + ".*" + re.escape(END), re.DOTALL)
    page, count = pattern.subn(lambda _: f"{BEGIN}\n{text}\n{END}", page)
    if count != 1:
        raise ValueError(f"{path} lacks the bench's markers")
    with open(path, "w") as file:
        file.write(page)
