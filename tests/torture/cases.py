"""The cases: what is put into the folder, the command line, and what a good answer is."""

import dataclasses
import functools
import gzip
import io
import os
import random
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.torture.case import Ask, Case, put
from tests.torture.databases import databases
from tests.torture.judge import Accepted, Expected, Refused, Sound
from tests.torture.mutations import mutated
from tests.torture.serving import serving

HEADER = "user,item,rating,time"
ROWS, SHARED = 60, 12  # ratings of each good file, users of both
# As commit 11a1751 wrote it.
OLD_HOME = Path(__file__).parents[1] / "assets" / "state" / "old_home"


def cases(mutations: int = 60) -> list[Case | Ask]:
    """All cases, in groups: names, files, columns, times, scales, damage, catalogues, profiles, ..."""
    made = [*_names(), *_files(), *_columns(), *_times(), *_scales(), *_damage(mutations)]
    made += [*_catalogues(), *_profiles(), *_homes(), *_network(), *_commands()]
    made += [*databases(), *serving()]
    assert len({case.name for case in made}) == len(made)
    return made


def short(count: int = 20) -> list[Case]:
    """A sample that spans the groups and needs no new process, no server and nothing trained."""
    every = [case for case in cases(8) if isinstance(case, Case) and not case.process and not case.lived]
    return [every[n * len(every) // count] for n in range(count)]


# Good files


def rows(side: str) -> list[tuple[str, str, int, int]]:
    """The ratings of a good file. Users u0 to u11 are on both sides."""
    draw, first = random.Random(side), 0 if side == "source" else 6
    pairs = [(f"u{first + n % 18}", f"{side[0]}{n // 18}") for n in range(ROWS)]
    return [(u, i, draw.randint(1, 5), 1_400_000_000 + draw.randrange(10**7)) for u, i in pairs]


def text(side: str, separator: str = ",", end: str = "\n") -> str:
    lines = [separator.join(HEADER.split(","))]
    return end.join([*lines, *(separator.join(map(str, row)) for row in rows(side)), ""])


def frame(side: str):
    import pandas as pd

    return pd.DataFrame(rows(side), columns=HEADER.split(","))


def parquet(table) -> bytes:
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return buffer.getvalue()


GOOD = {"source.ratings": ROWS, "target.ratings": ROWS, "overlap": SHARED}


def pair(
    name: str,
    expected: Expected,
    source: str | bytes | Callable[[Path, random.Random], None] | None = None,
    *options: str,
    file: str = "a.csv",
    command: Sequence[str] = (),
    target: str | bytes | None = None,
) -> Case:
    """A case of two files, of which the source is hostile; `inspect` where it may be taken, else `run`."""

    def prepare(folder: Path, draw: random.Random) -> None:
        put(folder / "b.csv", text("target") if target is None else target)
        if callable(source):
            source(folder, draw)
        else:
            put(folder / file, text("source") if source is None else source)

    verb = ["run"] if isinstance(expected, Refused) else ["inspect", "--format", "json"]
    arguments = [*(command or verb), "--source", file, "--target", "b.csv", *options]
    return Case(name, expected, tuple(arguments), prepare)


# Names of files


def _names() -> list[Case]:
    odd = [
        "movies[1].csv", "[ab].csv", "q?.csv", "s*.csv", "b{x,y}.csv", "**.csv", "back\\slash.csv", "a b.csv",
        "it's.csv", 'say"so".csv', "manifest.json", "incoming", "ratings.duckdb", ".hidden", "ü.csv",
        "a#b.csv", "a%20b.csv", "{folder}.csv", "a::b.csv", "x" * 235 + ".csv", "user=7/a.csv",
        "-dash.csv", "new\nline.csv", "$HOME.csv", "a;b.csv", "NUL.csv", "a.csv.gz",
    ]  # fmt: skip
    made = []
    for name in odd:
        made += [pair(f"names/{_label(name)}", Accepted(GOOD), _with_neighbours(name), file=f"./{name}")]
    for kind in ("directory", "fifo", "device", "loop", "dangling", "closed", "socket", "latin1"):
        made.append(_special(kind))
    made += [
        pair("names/too long", Refused(("xxx",)), lambda *_: None, file="x" * 300 + ".csv"),
        pair("names/empty", Refused(), lambda *_: None, file=""),
        pair("names/home", Refused(), lambda folder, _: (folder / "a.csv").mkdir()),
        pair("names/parquet pattern", Accepted(GOOD), _parquet_pattern, file="p[1].parquet"),
    ]
    made += [
        pair("names/hard link", Refused(("same file",)), _linked(os.link)),
        pair("names/symbolic link", Refused(("same file",)), _linked(os.symlink)),
        pair("names/copy", Accepted(warned=("same",)), text("target")),
        pair("names/packed copy", Accepted(warned=("same",)), gzip.compress(text("target").encode())),
    ]
    return made


def _label(name: str) -> str:
    return repr(name)[1:30].replace("/", "|")


def _with_neighbours(name: str):
    """The file, and files that it would match as a pattern or share a part of its name with."""

    def prepare(folder: Path, _: random.Random) -> None:
        for other in ("movies1.csv", "a.csv", "b", "qx.csv", "sx.csv", "bx.csv", "a"):
            put(folder / other, text("target").replace("u", "w").replace("wser", "user"))
        put(folder / "b.csv", text("target"))
        content = text("source").encode()
        put(folder / name, gzip.compress(content) if name.endswith(".gz") else content)

    return prepare


def _parquet_pattern(folder: Path, _: random.Random) -> None:
    put(folder / "p1.parquet", parquet(frame("target")))
    put(folder / "p[1].parquet", parquet(frame("source")))


def _linked(link: Callable):
    return lambda folder, _: link(folder / "b.csv", folder / "a.csv")


def _special(kind: str) -> Case:
    name = {"device": "/dev/null", "latin1": "caf\udce9.csv"}.get(kind, "a.csv")

    def prepare(folder: Path, _: random.Random) -> None:
        path = folder / name
        if kind == "directory":
            path.mkdir()
            put(path / "part.csv", text("source"))
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "loop":
            path.symlink_to(path.name)
        elif kind == "dangling":
            path.symlink_to("nowhere")
        elif kind == "closed":
            put(path / "a.csv", text("source"))
        elif kind == "socket":
            here = os.getcwd()
            with socket.socket(socket.AF_UNIX) as server:
                # The path of a socket may be 107 bytes long, and threads share the working directory.
                handle = os.open(folder, os.O_RDONLY)
                server.bind(f"/proc/self/fd/{handle}/{name}")
                os.close(handle)
            assert os.getcwd() == here
        elif kind == "latin1":
            put(path, text("source"))

    # A file is asked for below another file: not a folder.
    file = "a.csv/a.csv/b" if kind == "closed" else name
    words = () if kind == "latin1" else (file.split("/")[-1],)
    return pair(f"names/{kind}", Refused(words), prepare, file=file)


# Contents of files


def _files() -> list[Case]:
    good, header = text("source"), HEADER + "\n"
    body = good.split("\n", 1)[1]
    refused = {
        "empty": b"",
        "blank lines": "\n\n\n",
        "header alone": header,
        "only NUL": b"\0" * 4096,
        "random bytes": random.Random(1).randbytes(5000),
        "utf-16": good.encode("utf-16"),
        "latin1 row": good.encode() + b"u\xe9,i,3,1400000000\n",
        "no header": body,
        "open quote": good + 'u1,"x,4,1400000000\n' + body,
        "open quote at first": header + 'u1,"x,4,1400000000\n' + body,
        "short row": good + "u1,i9\n",
        "long row": good + "u1,i9,3,1400000000,more,more\n",
        "cut gzip": gzip.compress(good.encode())[:-20],
        "rubbish in gzip": gzip.compress(good.encode())[:30] + b"rubbish",
        "parquet magic": b"PAR1 rubbish",
        "parquet in gzip": gzip.compress(parquet(frame("source"))),
        "cut parquet": parquet(frame("source"))[:-10],
        "zip": b"PK\x03\x04" + bytes(200),
        "xlsx": b"PK\x03\x04\x14\x00\x06\x00" + random.Random(2).randbytes(500),
        "html": "<!DOCTYPE html>\n<html><body>404</body></html>\n",
        "json array": '[{"user": 1, "item": 2, "rating": 3}]',
        "json cut": '{"user": "u1", "item": "i1", "rating": 3}\n{"user": "u2", "it',
        "json number": '{"user": "u1", "item": "i1", "rating": 3}\n7\n',
        "json twice a key": '{"user": "u1", "item": "i1", "rating": 3, "rating": 5}\n' * 3,
        "json twice a key late": _json_lines() + '{"user": "u1", "item": "i9", "rating": 3, "rating": 5}\n',
        "json nested": '{"user": {"id": "u1"}, "item": "i1", "rating": 3}\n' * 3,
        "json nested late": _json_lines() + '{"user": ["u1"], "item": "i1", "rating": 3}\n',
        "json NUL": _json_lines() + '{"user": "u\\u00001", "item": "i9", "rating": 3}\n',
        "id of a megabyte": good + "u" * 10**6 + ",i1,3,1400000000\n",
        "row of three megabytes": good + "u" * 3 * 10**6 + ",i1,3,1400000000\n",
        "id of a megabyte at first": header + "u" * 10**6 + ",i1,3,1400000000\n" + body,
        "NUL in an id": good + "u\0x,i9,3,1400000000\n",
        "NUL in the header": good.replace("item", "it\0em", 1),
        "pipes": text("source", "|"),
        "double colons": text("source", "::"),
        "mixed line ends": good.replace("\n", "\r\n", 5),
    }
    accepted = {
        "semicolons": text("source", ";"),
        "tabs": text("source", "\t"),
        "semicolons in quotes": '"user";"item";"rating";"time"\n'
        + "".join(f'"{u}";"{i}";"{r}";"{t}"\n' for u, i, r, t in rows("source")),
        "decimal commas": "user;item;rating;time\n"
        + "".join(f"{u};{i};{r},0;{t}\n" for u, i, r, t in rows("source")),
        "CRLF": text("source", end="\r\n"),
        "CR": text("source", end="\r"),
        "no last line end": good.rstrip("\n"),
        "byte order mark": "\ufeff" + good,
        "blank lines between": good.replace("\n", "\n\n"),
        "text of a megabyte": _with_column("text", "x" * 10**6),
        "name of a column of a megabyte": _with_column("x" * 10**6, "1"),
        "two nameless columns": _with_column(",", "7,8"),
        "commas in the header of semicolons": _with_column('"a;b"', "1"),
        "json": _json_lines(),
        "json CRLF": _json_lines().replace("\n", "\r\n"),
        "json mixed line ends": _json_lines().replace("\n", "\r\n", 5),
        "json text that looks like a key": _json_lines(', "text": "\\"rating\\": 1, \\"rating\\": 2"'),
        "json nested elsewhere": _json_lines(', "helpful": {"rating": [1, 2]}'),
        "gzip of two members": gzip.compress(good[:100].encode()) + gzip.compress(good[100:].encode()),
        "parquet": parquet(frame("source")),
    }
    made = [pair(f"files/{name}", Refused(("a.csv",)), content) for name, content in refused.items()]
    made += [pair(f"files/{name}", Accepted(GOOD), content) for name, content in accepted.items()]
    blanks = good.replace("\nu7,", "\n u7,").replace("\nu8,", "\nu8\u00a0,")
    made += [
        pair("files/blanks around ids", Accepted(warned=("blank",)), blanks),
        pair("files/blanks around all ids", Refused(("blank",)), good.replace("\nu", "\n u")),
        pair("files/capitals in ids", Refused(("'u", "'U")), good.replace("\nu", "\nU")),
        pair("files/decimal commas are told", Accepted(warned=("comma",)), accepted["decimal commas"]),
        pair("files/no user in both", Refused(("user",)), good.replace("\nu", "\nv")),
    ]
    return made


def _json_lines(more: str = "") -> str:
    return "".join(
        f'{{"user": "{u}", "item": "{i}", "rating": {r}, "time": {t}{more}}}\n'
        for u, i, r, t in rows("source")
    )


def _with_column(name: str, value: str) -> str:
    header, *lines = text("source").splitlines()
    return "\n".join(
        [
            f"{header},{name}",
            f"{lines[0]},{value}",
            *(f"{line},{'1' + ',' * value.count(',')}" for line in lines[1:]),
            "",
        ]
    )


# Columns


def _columns() -> list[Case]:
    import pandas as pd

    good, table = text("source"), frame("source")
    header, body = good.split("\n", 1)
    wide = "\n".join([f"{header},rating", *(f"{line},9" for line in body.splitlines()), ""])
    other = wide.replace("time,rating", "time,Rating", 1)
    many = ",".join(f"c{n}" for n in range(5000)) + "\n" + "1," * 4999 + "1\n"
    equal = "\n".join([HEADER, *(f"u{n},i{n},3,1400000000" for n in range(30)), ""])
    tables = {
        "twin": pd.concat([table, table[["rating"]].rename(columns=str.title)], axis=1),
        "list": table.assign(user=[[u] for u in table.user]),
        "struct": table.assign(item=[{"id": i} for i in table.item]),
        "rating": table.assign(rating=[[r] for r in table.rating]),
        "elsewhere": table.assign(more=[[1]] * ROWS),
        "bytes": table.assign(user=table.user.str.encode("utf-8")),
        "nan": table.assign(rating=[float("nan"), *[3.0] * (ROWS - 1)]),
    }
    packed = {name: parquet(each) for name, each in tables.items()}
    bad = {
        "nan in text": ("u1,i9,nan,1400000000", "NaN"),
        "inf in text": ("u1,i9,inf,1400000000", "inf"),
        "missing user": (",i9,3,1400000000", "user"),
        "missing rating": ("u1,i9,,1400000000", "rating"),
        "word for a rating": ("u1,i9,good,1400000000", "good"),
    }
    made = [
        pair(f"columns/{name}", Refused(("a.csv", "line 62", word)), f"{good}{row}\n")
        for name, (row, word) in bad.items()
    ]
    return [
        *made,
        pair("columns/comma in a rating", Accepted(warned=("comma",)), good + 'u1,i9,"3,5",1400000000\n'),
        pair("columns/rating twice", Refused(("a.csv", "rating")), wide),
        pair("columns/rating and Rating", Accepted(GOOD | {"source.columns.rating": "rating"}), other),
        pair("columns/rating and Rating in Parquet", Refused(("rating", "Rating")), packed["twin"]),
        pair("columns/another twice", Accepted(GOOD), _with_column("x,x", "7,8")),
        pair("columns/no rating", Refused(("a.csv", "--rating-col")), good.replace("rating", "mark", 1)),
        pair("columns/unknown option", Refused(("nope",)), good, "--user-col", "nope"),
        pair("columns/twice one", Refused(("item",)), good, "--user-col", "item", "--item-col", "item"),
        pair("columns/thousands", Refused(("a.csv",)), many),
        pair("columns/nested list", Refused(("a.csv", "user")), packed["list"]),
        pair("columns/nested struct", Refused(("a.csv", "item")), packed["struct"]),
        pair("columns/nested rating", Refused(("a.csv", "rating")), packed["rating"]),
        pair("columns/nested elsewhere", Accepted(GOOD), packed["elsewhere"]),
        pair("columns/bytes", Accepted(GOOD), packed["bytes"]),
        pair("columns/NaN rating", Refused(("a.csv", "NaN")), packed["nan"]),
        pair("columns/equal ratings", Refused(("a.csv", "3")), equal),
        pair("columns/no rows of Parquet", Refused(("a.csv",)), parquet(table[:0])),
    ]


# Times


def _times() -> list[Case]:
    def timed(make: Callable[[int], object]) -> str:
        return "\n".join([HEADER, *(f"{u},{i},{r},{make(t)}" for u, i, r, t in rows("source")), ""])

    good = text("source")
    warned = {
        "zero": lambda t: 0,
        "equal": lambda t: 1_400_000_000,
        "days": lambda t: t // 86400,
        "years": lambda t: 2014,
        "day numbers": lambda t: f"201405{t % 28 + 1:02d}",
        "microseconds": lambda t: t * 10**6,
        "nanoseconds": lambda t: t * 10**9,
        "words": lambda t: "yesterday",
        "month first": lambda t: f"05/{t % 28 + 1:02d}/2014",
    }
    right = {
        "seconds": lambda t: t,
        "milliseconds": lambda t: t * 1000,
        "fractions": lambda t: f"{t}.0",
        "dates": lambda t: f"2014-05-{t % 28 + 1:02d}",
    }
    late = {
        "far past": "-100000000000",
        "far future": "99999999999999",
        "milliseconds in seconds": "1400000000000",
        "not a time": "soon",
        "missing": "",
        "nan": "nan",
        "overflow": "9" * 40,
        "NUL": "14\x0000000",
    }
    made = [pair(f"times/{name}", Accepted(warned=("time",)), timed(make)) for name, make in warned.items()]
    made += [pair(f"times/{name}", Accepted(GOOD), timed(make)) for name, make in right.items()]
    made += [
        pair(f"times/one {name}", Refused(("a.csv", "line 62", "time")), good + f"u1,i9,3,{value}\n")
        for name, value in late.items()
    ]
    made.append(pair("times/all far past", Refused(("time",)), timed(lambda t: -(10**11))))
    return made


# Scales


def _scales() -> list[Case]:
    good = text("source")
    zeros = good + "u1,i9,0,1400000000\nu2,i9,0,1400000000\n"
    tens = "\n".join([HEADER, *(f"{u},{i},{2 * r},{t}" for u, i, r, t in rows("source")), ""])
    scale = r"--[a-z-]*scale -?[\d.]+ -?[\d.]+"
    made = [
        pair(f"scales/{' '.join(ends)}", Refused(("scale",)), good, "--scale", *ends)
        for ends in (
            ("nan", "5"), ("1", "nan"), ("nan", "nan"), ("1", "inf"), ("-inf", "inf"), ("-1e9", "1e9"),
            ("5", "1"), ("3", "3"), ("1e300", "1e308"), ("1", "1e7"), ("0", "1e-320"),
        )
    ]  # fmt: skip
    made += [
        pair("scales/word", Refused(("scale",)), good, "--scale", "one", "five"),
        pair("scales/one end", Refused(), good, "--scale", "1"),
        pair("scales/zeros", Refused(("a.csv", "line 62"), hint=scale), zeros),
        pair("scales/zeros left out", Refused(("a.csv",), hint=r"--on-bad-rows \w+"), zeros),
        pair("scales/tens", Refused(("a.csv", "scale"), hint=scale), tens),
        pair("scales/two scales", Accepted(GOOD), tens, "--source-scale", "1", "10"),
        pair("scales/negative", Accepted(GOOD), good, "--scale", "-10", "10"),
        pair("scales/wrong side", Refused(("a.csv",)), tens, "--target-scale", "1", "10"),
        pair("scales/source nan", Refused(("--source-scale", "nan")), good, "--source-scale", "nan", "5"),
        pair("scales/other bad rows", Refused(("bad",)), zeros, "--on-bad-rows", "perhaps"),
    ]
    return made


# Files damaged at random


def _damage(count: int) -> list[Case]:
    good = {
        "csv": text("source").encode(),
        "tsv": text("source", "\t").encode(),
        "json": _json_lines().encode(),
    }
    good["parquet"] = parquet(frame("source"))
    good["gz"] = gzip.compress(good["csv"], mtime=0)
    return [_damaged(number, *list(good.items())[number % len(good)]) for number in range(count)]


def _damaged(number: int, kind: str, content: bytes) -> Case:
    def prepare(folder: Path, draw: random.Random) -> None:
        put(folder / f"a.{kind}", mutated(content, draw))

    return pair(f"damage/{kind} {number}", Sound((f"a.{kind}",)), prepare, file=f"a.{kind}")


# Catalogues


def _catalogues() -> list[Case]:
    domain = {"url": "a.csv", "kind": "csv", "columns": "{user: user, item: item, rating: rating}"}
    entries = {
        "url climbs": {"url": "../../etc/passwd"},
        "file url climbs": {"url": "'file:../../etc/passwd'"},
        "file url is relative": {"url": "'file://../x.csv'"},
        "chained url climbs": {"url": "'simplecache::file:../../etc/passwd'"},
        "local url climbs": {"url": "'local:../x.csv'"},
        "unknown key": {"colour": "red"},
        "scale nan": {"scale": "[.nan, 5]"},
        "scale inf": {"scale": "[1, .inf]"},
        "scale wide": {"scale": "[-1.0e+9, 1.0e+9]"},
        "scale falls": {"scale": "[5, 1]"},
        "kind unknown": {"kind": "xls"},
        "column twice": {"columns": "{user: user, item: user, rating: rating}"},
        "k_core zero": {"k_core": "0"},
        "columns a list": {"columns": "[user, item]"},
        "no url": {"url": "null"},
    }
    made = [
        _catalogue(name, Refused(("mine.yaml",)), _domain_yaml({**domain, **changes}))
        for name, changes in entries.items()
    ]
    texts = {
        "not yaml": "domains: [",
        "a list": "- 1\n- 2\n",
        "twice a key": "domains: {}\ndomains: {}\n",
        "unknown section": "planets: {}\n",
        "tab": "domains:\n\ta: 1\n",
        "latin1": b"# caf\xe9\n",
        "seeds negative": "cells: {seeds: [-1]}\n",
        "beta of two": "cells: {betas: [2.0]}\n",
        "no seeds": "cells: {seeds: []}\n",
        "task of nothing": "tasks: {t: {source: nothing, target: music}}\n",
        "bad name": "domains: {'../x': {url: a.csv, format: amazon2014}}\n",
        "alias of itself": "domains: &d\n  a: *d\n",
    }
    made += [_catalogue(name, Refused(("mine.yaml",)), content) for name, content in texts.items()]
    missing = Case(
        "catalogues/missing",
        Refused(("gone.yaml",)),
        ("inspect", "--task", "t"),
        lambda *_: None,
        {"DIFFCDR_CATALOG": "{folder}/gone.yaml"},
        process=True,
    )
    return [*made, missing]


def _domain_yaml(entry: Mapping[str, str]) -> str:
    lines = "".join(f"    {key}: {value}\n" for key, value in entry.items())
    other = "  b: {url: b.csv, kind: csv, columns: {user: user, item: item, rating: rating}}\n"
    return f"domains:\n  a:\n{lines}{other}tasks:\n  t: {{source: a, target: b}}\n"


def _catalogue(name: str, expected: Expected, content: str | bytes) -> Case:
    def prepare(folder: Path, _: random.Random) -> None:
        put(folder / "mine.yaml", content)
        put(folder / "a.csv", text("source"))
        put(folder / "b.csv", text("target"))

    environment = {"DIFFCDR_CATALOG": "{folder}/mine.yaml"}
    return Case(
        f"catalogues/{name}", expected, ("inspect", "--task", "t"), prepare, environment, process=True
    )


# Profiles


def _profiles() -> list[Case]:
    texts = {
        "negative rate": "extends: paper\nmodels: {emcdr: {lr: -0.1}}\n",
        "rate of NaN": "extends: paper\nmodels: {emcdr: {lr: .nan}}\n",
        "infinite rate": "extends: paper\nmodels: {emcdr: {lr: .inf}}\n",
        "rate that YAML reads as text": "extends: paper\nmodels: {emcdr: {lr: 1e-3}}\n",
        "unknown setting": "extends: paper\nmodels: {emcdr: {rl: 0.1}}\n",
        "zero epochs": "extends: paper\nmodels: {emcdr: {epochs: 0}}\n",
        "half an epoch": "extends: paper\nmodels: {emcdr: {epochs: 2.5}}\n",
        "no factors": "extends: paper\nfactors: {k: 0}\n",
        "unknown model": "extends: paper\nmodels: {nope: {}}\n",
        "list for a mapping": "extends: paper\nmodels: [emcdr]\n",
        "text for a list": "extends: paper\nobjectives: rating\n",
        "unknown key": "extends: paper\nmodles: {}\n",
        "twice a key": "title: a\ntitle: b\n",
        "extends itself": "extends: mine\n",
        "not yaml": "models: [",
        "a list": "- emcdr\n",
        "latin1": b"title: caf\xe9\n",
        "alias of itself": "models: &m\n  emcdr: *m\n",
        "a folder": None,
    }
    return [_profile(name, content) for name, content in texts.items()]


def _profile(name: str, content: str | bytes | None) -> Case:
    def prepare(folder: Path, _: random.Random) -> None:
        if content is None:
            (folder / "profiles" / "mine.yaml").mkdir(parents=True)
        else:
            put(folder / "profiles" / "mine.yaml", content)

    asked = ("run", "--task", "demo_video_music", "--profile", "mine")
    environment = {"DIFFCDR_PROFILES": "{folder}/profiles"}
    return Case(f"profiles/{name}", Refused(("mine.yaml",)), asked, prepare, environment)


# Homes


def _homes() -> list[Case]:
    pair_of_files = ("--source", "a.csv", "--target", "b.csv")
    refused = {
        "below a file": ("{folder}/a.csv/home", "a.csv"),
        "is a file": ("{folder}/a.csv", "a.csv"),
        "is a loop": ("{folder}/loop", "loop"),
        "on a closed disk": ("/proc/diffcdr", "/proc"),
        "of a long name": ("{folder}/" + "x" * 300, "xxx"),
    }
    made = [
        _home(name, Refused((word,)), ("run", *pair_of_files), home) for name, (home, word) in refused.items()
    ]
    broken = {
        "catalogue is text": "domains: [",
        "catalogue is a list": "- 1\n",
        "catalogue is NUL": b"\0" * 9,
    }
    made += [
        _home(
            name, Refused(("own_data.yaml",)), ("run", *pair_of_files), file="own_data.yaml", content=content
        )
        for name, content in broken.items()
    ]
    demo = ("--task", "demo_video_music")
    histories = {
        "history is rubbish": ("dagster/history/runs.db", b"rubbish" * 999),
        "history is cut": ("dagster/history/runs.db", b"SQLite format 3\0" + bytes(50)),
        "settings of Dagster are rubbish": ("dagster/dagster.yaml", "storage: ["),
    }
    made += [
        _home(name, Refused((file,), leaves=True), ("inspect", *demo), file=file, content=content)
        for name, (file, content) in histories.items()
    ]
    rubbish = "artifacts/models/profile=paper/model=emcdr/manifest.json"
    accepted = {
        "below a key": ("inspect", "{folder}/task=other/home", None),
        "name with a pattern": ("inspect", "{folder}/h[1]*?", None),
        "name with a quote": ("inspect", "{folder}/it's", None),
        "rubbish for a manifest": ("results", "{folder}/home", rubbish),
    }
    for name, (verb, home, file) in accepted.items():
        facts = GOOD if verb == "inspect" else {}
        asked = (verb, "--format", "json", *(pair_of_files if verb == "inspect" else ()))
        made.append(_home(name, Accepted(facts), asked, home, file=file, content="{]"))
    made.append(_home("of an older version", Accepted(), ("results", "--format", "json"), old=True))
    return made


def _home(
    name: str,
    expected: Expected,
    arguments: tuple[str, ...],
    home: str = "{folder}/home",
    *,
    file: str | None = None,
    content: str | bytes = "",
    old: bool = False,
) -> Case:
    def prepare(folder: Path, _: random.Random) -> None:
        put(folder / "a.csv", text("source"))
        put(folder / "b.csv", text("target"))
        (folder / "loop").symlink_to("loop")
        if file is not None:
            put(folder / "home" / file, content)
        if old:
            shutil.copytree(OLD_HOME, folder / "home")

    # The home's place and Dagster's are read at import by some versions.
    process = arguments[:2] == ("inspect", "--task")
    return Case(f"homes/{name}", expected, arguments, prepare, {"DIFFCDR_HOME": home}, process)


# Servers that are not there


def _network() -> list[Case]:
    """Ten seconds are what a tracking server that is down may cost; a download is tried several times."""
    demo = ("run", "--task", "demo_video_music", "--beta", "0.2", "--seed", "0", "--model", "emcdr")
    tracking = {
        "MLflow refuses": "http://127.0.0.1:9",
        "MLflow is of no host": "http://nowhere.invalid",
        "MLflow is silent": "http://127.0.0.1:{port}",
        "MLflow is no address": "http://:0:0",
    }
    made = [_tracked(name, uri, demo) for name, uri in tracking.items()]
    made.append(
        Case(
            "network/tracking perhaps",
            Refused(("DIFFCDR_TRACKING", "perhaps")),
            demo,
            lambda *_: None,
            {"DIFFCDR_TRACKING": "perhaps"},
        )
    )
    entries = {
        "download refuses": "http://127.0.0.1:9/a.csv",
        "download of no host": "http://nowhere.invalid/a",
    }
    for name, url in entries.items():
        domain = {"url": url, "kind": "csv", "columns": "{user: user, item: item, rating: rating}"}
        case = _catalogue(name, Refused((url,), leaves=True), _domain_yaml(domain))
        made.append(dataclasses.replace(case, name=f"network/{name}", seconds=60))
    return made


def _tracked(name: str, uri: str, arguments: tuple[str, ...]) -> Case:
    def prepare(folder: Path, _: random.Random) -> None: ...

    if "{port}" in uri:
        uri = uri.format(port=_silent().getsockname()[1])
    expected = Refused((uri, "--no-tracking"))
    return Case(f"network/{name}", expected, arguments, prepare, {"MLFLOW_TRACKING_URI": uri}, seconds=10)


@functools.cache
def _silent() -> socket.socket:
    """A socket of this process that takes connections, as the kernel does, and never answers."""
    return socket.create_server(("127.0.0.1", 0), backlog=64)


# Command lines


def _commands() -> list[Case]:
    users = parquet(frame("source").rename(columns={"user": "user_id"}))

    def with_users(folder: Path, _: random.Random) -> None:
        put(folder / "users.parquet", users)
        put(folder / "a.csv", text("source"))
        put(folder / "b.csv", text("target"))
        put(folder / "folder" / "x", b"")
        os.link(folder / "users.parquet", folder / "linked.parquet")

    task = ("--task", "demo_video_music")
    asked = ("recommend", *task, "--users")
    lines = {
        "nothing": ("run", *()),
        "source alone": ("run", "--source", "a.csv"),
        "task and source": ("run", *task, "--source", "a.csv", "--target", "a.csv"),
        "unknown task": ("run", "--task", "nope"),
        "task is a pattern": ("run", "--task", "*"),
        "task climbs": ("run", "--task", "../*"),
        "unknown beta": ("run", *task, "--beta", "0.33"),
        "beta nan": ("run", *task, "--beta", "nan"),
        "unknown seed": ("run", *task, "--seed", "99"),
        "unknown profile": ("run", *task, "--profile", "../paper"),
        "unknown model": ("run", *task, "--model", "nope"),
        "inspect unknown task": ("inspect", "--task", "../*"),
        "results of a pattern": ("results", "--task", "../*"),
        "results of a star": ("results", "--task", "*"),
        "results of a folder": ("results", "--task", ".."),
        "results of a profile pattern": ("results", "--profile", "*"),
        "verdict unknown task": ("verdict", "--task", "*"),
        "verdict unknown profile": ("verdict", "--profile", "*"),
        "register unknown task": ("register", "--task", "*"),
        "output is users": (*asked, "users.parquet", "--output", "users.parquet"),
        "output is users by another way": (*asked, "users.parquet", "--output", "folder/../users.parquet"),
        "output is linked to users": (*asked, "users.parquet", "--output", "linked.parquet"),
        "output is a folder": (*asked, "users.parquet", "--output", "folder"),
        "output is nowhere": (*asked, "users.parquet", "--output", "gone/out.parquet"),
        "users missing": (*asked, "gone.parquet", "--output", "out.parquet"),
        "users is a folder": (*asked, "folder", "--output", "out.parquet"),
        "users is text": (*asked, "a.csv", "--output", "out.parquet"),
        "output is exclude": (*asked, "users.parquet", "--output", "a.csv", "--exclude", "a.csv"),
    }
    files = ("run", "--source", "a.csv", "--target", "b.csv")
    lines |= {
        "unknown beta of files": (*files, "--beta", "0.33"),
        "unknown seed of files": (*files, "--seed", "99"),
        "unknown profile of files": (*files, "--profile", "*"),
        "unknown model of files": (*files, "--model", "nope"),
        "task and pattern": ("run", *task, "--task", "demo_*"),
    }
    named = {
        "output is users": ("users.parquet", "--output"),
        "output is users by another way": ("users.parquet", "--output"),
        "output is linked to users": ("linked.parquet", "--output"),
        "output is a folder": ("folder",),
        "output is nowhere": ("gone",),
        "users missing": ("gone.parquet",),
        "users is a folder": ("folder",),
        "users is text": ("a.csv",),
        "output is exclude": ("a.csv",),
        "results of a pattern": ("../*",),
    }
    return [
        Case(f"commands/{name}", Refused(named.get(name, ())), line, with_users, process=line[0] != "run")
        for name, line in lines.items()
    ]
