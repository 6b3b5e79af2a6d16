"""How the hold scripts are written: what no behaviour shows, and what fakeredis and a single Redis let pass.

An undeclared key works on one server and breaks on a cluster; a command newer than 6.2 works here and not there; a
leaked global fails the script on Redis only at its second run. So the text itself is read.
"""

import inspect
import re
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
import redis
from redis.crc import key_slot

from app import holds
from app.holds import Holds, slot_keys
from app.paths import lua_dir
from app.pipelines import Call, read_scripts
from tests.redis_servers import bundled_redis, running_redis
from tests.slots import counts_of, some_facts

SCRIPTS = sorted(lua_dir().glob("*.lua"))
MAX_LINES = 60
#: … but what must be decided in one step, or told the neighbours in it, takes the lines it takes.
LONGER = {"hold": 100, "settle": 62, "sync": 70}
#: What Redis defines for a script, and what the language does; everything else must be local.
GIVEN = {"redis", "KEYS", "ARGV", "math", "string", "table", "tonumber", "tostring", "ipairs", "pairs", "type"}
#: Options of commands of ours that came after 6.2: EXPIRE's conditions.
NEWER_OPTIONS = {"PEXPIRE": {"NX", "XX", "GT", "LT"}, "PEXPIREAT": {"NX", "XX", "GT", "LT"}}
KEYWORDS = {
    "and", "break", "do", "else", "elseif", "end", "false", "for", "function", "if", "in", "local", "nil", "not", "or",
    "repeat", "return", "then", "true", "until", "while",
}  # fmt: skip


def header(path: Path) -> list[str]:
    lines = path.read_text().splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("--"))
    return lines[:end]


def code(path: Path) -> str:
    """The script below its header, without comments."""
    return "\n".join(line.split("--")[0] for line in path.read_text().splitlines())


def without_strings(text: str) -> str:
    return re.sub(r"'[^'\n]*'", "''", text)


def calls(text: str) -> list[list[str]]:
    """The arguments of every redis.call, as they are written."""
    found = []
    for match in re.finditer(r"redis\.p?call\(", text):
        depth, start, arguments = 1, match.end(), []
        for position in range(match.end(), len(text)):
            character = text[position]
            depth += (character in "({[") - (character in ")}]")
            if (character == "," and depth == 1) or depth == 0:
                arguments.append(text[start:position].strip())
                start = position + 1
            if depth == 0:
                break
        found.append(arguments)
    return found


def locals_of(text: str) -> set[str]:
    names: set[str] = set()
    for declared in re.findall(r"\blocal ([\w, ]+?)(?: =|\n|$)", text) + re.findall(r"\bfor ([\w, ]+?) (?:in|=)", text):
        names |= {name.strip() for name in declared.split(",")}
    return names


def keys_of(text: str) -> set[str]:
    """The names that are bound to elements of KEYS, and to nothing else."""
    keys = set()
    for names, values in re.findall(r"local ([\w, ]+) = (KEYS\[[^\n]+)", text):
        bound = [value.strip() for value in values.split(",")]
        assert all(re.fullmatch(r"KEYS\[[\di +]+\]", value) for value in bound), values
        keys |= set(re.split(r", *", names))
    for name in keys:
        binding = rf"^ *(?:local |for )?[\w, ]*\b{name}\b[\w, ]*(?:=(?!=)| in )"
        assert len(re.findall(binding, text, re.MULTILINE)) == 1, f"{name} is bound again"
    return keys


def complaints(text: str) -> list[str]:
    """What the lint finds in a script's code; nothing in ours, something in each control below."""
    found = []
    keys, bare = keys_of(text), without_strings(text)
    for command, *arguments in calls(text):
        name = command.strip("'")
        if not re.fullmatch(r"'[A-Z]+'", command):
            found.append(f"not a literal command: {command}")
        if name != "TIME" and (not arguments or arguments[0] not in keys):
            found.append(f"not a declared key: {arguments[:1]}")
        if {argument.strip("'") for argument in arguments} & NEWER_OPTIONS.get(name, set()):
            found.append(f"an option newer than 6.2: {name} {arguments}")
    known = locals_of(bare) | GIVEN | KEYWORDS
    found += [f"global: {name}" for name in re.findall(r"(?<![\w.'])([A-Za-z_]\w*)", bare) if name not in known]
    if re.search(r"[,{]\s*(true|false|nil)\b[^\n]*}", "".join(re.findall(r"return {[^\n]*", bare))):
        found.append("a reply with true, false or nil")
    return found


def test_there_are_scripts_and_each_is_used() -> None:
    assert {path.stem for path in SCRIPTS} == set(read_scripts())
    source = inspect.getsource(holds)
    assert [path.stem for path in SCRIPTS if f'"{path.stem}"' not in source] == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_starts_with_the_five_parts_of_its_contract(path: Path) -> None:
    lines = header(path)
    assert re.match(rf"-- {path.stem}: [a-z].*\.", lines[0])
    parts = [match[1] for line in lines[1:] if (match := re.match(r"-- (KEYS|ARGV|Returns|Safety)\b", line))]
    assert list(dict.fromkeys(parts)) == ["KEYS", "ARGV", "Returns", "Safety"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_the_header_names_the_keys_arguments_and_words_that_the_script_has(path: Path) -> None:
    told, text = "\n".join(header(path)), code(path)
    for word in ("KEYS", "ARGV"):
        documented = set(re.findall(rf"(?<!\S){word}(\[[^\]]+\])", told))
        used = set(re.findall(rf"\b{word}(\[\d+\])", text))
        assert used <= documented
        if path.stem not in ("room", "clash"):  # they count from i
            assert used == documented
    words = set(re.findall(r"return {'(\w+)'", text)) | set(re.findall(r"local reply = {'(\w+)'", text))
    assert set(re.findall(r'{"(\w+)"', told)) == words


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_one_script_does_one_thing_on_one_page(path: Path) -> None:
    assert len(path.read_text().splitlines()) < LONGER.get(path.stem, MAX_LINES)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_touches_only_declared_keys_and_leaks_no_global(path: Path) -> None:
    assert complaints(code(path)) == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_arguments_get_their_names_in_the_first_lines(path: Path) -> None:
    lines = [line for line in code(path).splitlines() if line.strip()]
    last = max((number for number, line in enumerate(lines) if "ARGV" in line), default=-1)
    first_call = next(number for number, line in enumerate(lines) if "redis.call" in line)
    assert last < first_call


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_reads_the_time_once(path: Path) -> None:
    """It advances inside a script on Redis 7.0: two readings would be two opinions of what has lapsed."""
    assert [command for command, *_ in calls(code(path))].count("'TIME'") == 1


def test_every_command_is_known_to_redis_6_2() -> None:
    commands = {command.strip("'") for path in SCRIPTS for command, *_ in calls(code(path))}
    with running_redis(binary=bundled_redis()) as server, server.admin() as client:
        assert client.info("server")["redis_version"].startswith("6.2.")
        assert set(client.command()) >= {command.lower() for command in commands}


def test_every_script_compiles_on_redis_6_2() -> None:
    with running_redis(binary=bundled_redis()) as server, server.admin() as client:
        for script in read_scripts().values():
            assert client.script_load(script.text) == script.sha


def test_all_keys_of_a_resource_lie_on_one_shard() -> None:
    resource = uuid4()
    keys = [key for _ in range(20) for key in slot_keys(resource, uuid4()).values()]
    assert len({key_slot(key.encode()) for key in keys}) == 1
    assert {re.findall(r"{([^}]*)}", key)[0] for key in keys} == {str(resource)}
    assert len({key_slot(key.encode()) for _ in range(20) for key in slot_keys(uuid4(), uuid4()).values()}) > 1


def test_calls_pass_as_many_keys_and_arguments_as_the_scripts_bind() -> None:
    client = Holds(redis.asyncio.Redis())
    facts = some_facts(buffer=timedelta())
    counts = counts_of(facts)
    sent: list[Call] = [client.settle_call(counts, facts.id, remember=True), client.sync_call(counts)]
    for call in sent:
        text = code(lua_dir() / f"{call.script}.lua")
        assert len(call.keys) == max(map(int, re.findall(r"KEYS\[(\d+)\]", text)))
        assert len(call.args) == max(map(int, re.findall(r"ARGV\[(\d+)\]", text)))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("redis.call('DEL', 'hf:literal')", "not a declared key"),
        ("redis.call('DEL', mirror .. ':x')", "not a declared key"),
        ("redis.call('SCAN', 0)", "not a declared key"),
        ("local key = 'a' redis.call('DEL', key)", "not a declared key"),
        ("redis.call(cmd, mirror)", "not a literal command"),
        ("redis.call('PEXPIRE', mirror, 1, 'GT')", "an option newer than 6.2"),
        ("leaked = 1", "global: leaked"),
        ("local read = leaked", "global: leaked"),
        ("cjson.encode({})", "global: cjson"),
        ("return {'word', nil}", "a reply with true, false or nil"),
    ],
)
def test_control_the_lint_sees_what_it_is_for(line: str, complaint: str) -> None:
    assert any(found.startswith(complaint) for found in complaints(f"local mirror = KEYS[1]\n{line}\n"))


def test_control_a_leaked_global_fails_on_a_real_redis() -> None:
    says = "global variable|readonly table"  # 6.2.7 and newer lock the table itself
    with running_redis() as server, server.admin() as client, pytest.raises(redis.ResponseError, match=says):
        client.eval("leaked = 1 return 1", 0)
