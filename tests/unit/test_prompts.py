"""Published prompt sets, read from small files of the published forms."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from pathlib import Path

import pytest

from nanogen import registry, store
from nanogen.errors import ConfigError, DataError
from nanogen.metrics.geneval_rules import Detection, judge
from nanogen.prompts import dpg, genai, geneval
from nanogen.prompts.dpg import DpgPrompts
from nanogen.prompts.genai import GenAi527Prompts, GenAiPrompts
from nanogen.prompts.geneval import GenEvalPrompts, Scene, Wanted
from nanogen.store import prepare

PUBLISHED = Path(__file__).parents[3] / "shared/data/geneval/evaluation_metadata.jsonl"
"""beside the checkout, where somebody has put it"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("name", "images", "count"),
    [("geneval", 4, 553), ("dpg", 4, 1065), ("genai", 1, 1600), ("genai-527", 1, 527)],
)
def test_registered(name: str, images: int, count: int) -> None:
    target = registry.get("prompts", name)
    assert (target.name, target.images, target.count) == (name, images, count)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("entry", registry.entries("prompts"), ids=lambda entry: entry.name)
def test_without_its_files_it_names_the_command(entry: registry.Entry) -> None:
    with pytest.raises(ConfigError, match="run: nanogen prepare "):
        entry.target()


LINES = """\
{"tag": "single_object", "include": [{"class": "tie", "count": 1}], "prompt": "a photo of a tie"}
{"tag": "two_object", "include": [{"class": "cow", "count": 1}, {"class": "tv", "count": 1}], \
"prompt": "a photo of a cow and a tv"}
{"tag": "counting", "include": [{"class": "cup", "count": 3}], \
"exclude": [{"class": "cup", "count": 4}], "prompt": "a photo of three cups"}
{"tag": "colors", "include": [{"class": "hair drier", "count": 1, "color": "pink"}], \
"prompt": "a photo of a pink hair drier"}
{"tag": "position", "include": [{"class": "dog", "count": 1}, \
{"class": "cat", "count": 1, "position": ["left of", 0]}], \
"prompt": "a photo of a cat left of a dog"}
{"tag": "color_attr", "include": [{"class": "bus", "count": 1, "color": "red"}, \
{"class": "tv remote", "count": 1, "color": "blue"}], \
"prompt": "a photo of a red bus and a blue tv remote"}
"""


def test_geneval_scenes() -> None:
    scenes = geneval.parse(LINES, "x")
    assert [scene.tag for scene in scenes] == list(geneval.TAGS)
    assert scenes[2] == Scene(
        "a photo of three cups", "counting", (Wanted("cup", 3),), (Wanted("cup", 4),)
    )
    assert scenes[3].include == (Wanted("hair drier", 1, "pink"),)
    assert scenes[4].include == (Wanted("dog", 1), Wanted("cat", 1, None, "left of"))
    assert scenes[5].include == (Wanted("bus", 1, "red"), Wanted("tv remote", 1, "blue"))
    assert len(set(geneval.NAMES)) == 80
    assert (geneval.NAMES[0], geneval.NAMES[11], geneval.NAMES[-1]) == (
        "person",
        "stop sign",
        "toothbrush",
    )


def test_geneval_scenes_are_judged_by_the_rules() -> None:
    scene = geneval.parse(LINES, "x")[4]
    dog = Detection("dog", 0.9, (60, 0, 80, 20))
    for left, correct in ((0, True), (120, False)):
        cat = Detection("cat", 0.9, (left, 0, left + 20, 20))
        assert judge([dog, cat], scene, lambda _: "none").correct is correct


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"single_object"', '"objects"', "line 1, is not a scene of GenEval: tag 'objects'"),
        ('"class": "tie"', '"class": "necktie"', "line 1.*class 'necktie'"),
        ('"count": 3', '"count": "3"', "line 3.*count '3'"),
        ('["left of", 0]', '["left of", 1]', "line 5.*position"),
        ('["left of", 0]', '["beside", 0]', "line 5.*position"),
        ('["left of", 0]', '"left"', "line 5, is not"),
        ('"prompt": "a photo of a tie"', '"text": "a tie"', "line 1.*no 'prompt'"),
        ('{"tag": "two', "{two", "line 2"),
    ],
)
def test_geneval_of_another_form(old: str, new: str, message: str) -> None:
    assert old in LINES
    with pytest.raises(DataError, match=message) as problem:
        geneval.parse(LINES.replace(old, new), "x")
    assert "run: nanogen prepare geneval-prompts --from" in str(problem.value)


@pytest.mark.usefixtures("cache")
def test_geneval_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geneval, "METADATA", store.Asset("g", "g", "MIT", url="https://x/g.jsonl"))
    file = tmp_path / "metadata.jsonl"
    file.write_text(LINES)
    found = prepare(geneval.METADATA, file)
    with pytest.raises(DataError, match="holds 6 unique prompts in 6 lines, not 553"):
        GenEvalPrompts()
    monkeypatch.setattr(GenEvalPrompts, "count", 6)
    prompts = GenEvalPrompts()
    assert prompts.fingerprint == found.sha256
    assert prompts.texts == tuple(json.loads(line)["prompt"] for line in LINES.splitlines())
    assert prompts.tag_of("a photo of three cups") == "counting"
    assert prompts.scene_of("a photo of a tie") is prompts.scenes[0]
    file.write_text(LINES + LINES.splitlines()[0] + "\n")
    prepare(geneval.METADATA, file)
    with pytest.raises(DataError, match="6 unique prompts in 7 lines"):
        GenEvalPrompts()


@pytest.mark.usefixtures("cache")
def test_geneval_as_published() -> None:
    """Where the published file is there: counts by tag and relation, classes, and the hash."""
    if not PUBLISHED.exists():
        pytest.skip(f"needs {PUBLISHED}")
    prepare(geneval.METADATA, PUBLISHED)
    prompts = GenEvalPrompts()
    assert prompts.fingerprint == geneval.METADATA.sha256
    assert len(set(prompts.texts)) == len(prompts.texts) == 553
    wanted = [one for scene in prompts.scenes for one in (*scene.include, *scene.exclude)]
    assert {one.name for one in wanted} <= set(geneval.NAMES)
    assert Counter(scene.tag for scene in prompts.scenes) == {
        "single_object": 80,
        "two_object": 99,
        "counting": 80,
        "colors": 94,
        "position": 100,
        "color_attr": 100,
    }
    relations = Counter(one.position for scene in prompts.scenes for one in scene.include)
    del relations[None]
    assert relations == {"below": 28, "right of": 27, "above": 26, "left of": 19}
    counting = Counter(s.include[0].count for s in prompts.scenes if s.tag == "counting")
    assert counting == {2: 26, 3: 28, 4: 26}
    assert all(
        (one.name, one.count) == (scene.include[0].name, scene.include[0].count + 1)
        for scene in prompts.scenes
        for one in scene.exclude
    )


ITEMS = {
    "partiprompts1": 'a sign that says "stop, now"\nin  two lines, ',
    "whoops2": " a plain prompt\r\nwith Windows' line end",
    "3": "été",
}


def questions(items: dict[str, str]) -> str:
    file = io.StringIO(newline="")
    table = csv.writer(file)
    table.writerow(dpg.COLUMNS)
    for item, text in items.items():
        for number in (1, 2):
            row = (item, text, "", number, number - 1, "entity", "whole")
            table.writerow((*row, "entity - whole (a, b)", "Is there one?"))
    return file.getvalue()


def test_dpg_texts_are_exact() -> None:
    assert dpg.parse(questions(ITEMS), "x") == ITEMS


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("a,b\n1,2\n", "x has the columns a, b; run: nanogen prepare dpg-bench --from"),
        ("", "x has the columns none"),
        (questions({"1": ""}), "line 2: item '1' has no text"),
        (
            questions({"1": "a"}) + questions({"1": "b"}).partition("\n")[2],
            "line 4: .*another text",
        ),
        (questions({"1": "a"}) + '1,"a" b,c\n', "after line 3: ',' expected"),
    ],
)
def test_dpg_of_another_form(table: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        dpg.parse(table, "x")


@pytest.mark.usefixtures("cache")
def test_dpg_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "questions.csv"
    file.write_bytes(questions(ITEMS).encode())
    found = prepare(dpg.QUESTIONS, file)
    with pytest.raises(DataError, match="holds 3 unique prompts of 3 items, not 1065"):
        DpgPrompts()
    monkeypatch.setattr(DpgPrompts, "count", 3)
    prompts = DpgPrompts()
    assert prompts.items == ITEMS and prompts.texts == tuple(ITEMS.values())
    assert prompts.fingerprint == found.sha256
    file.write_bytes(questions({**ITEMS, "4": ITEMS["3"]}).encode())
    prepare(dpg.QUESTIONS, file)
    with pytest.raises(DataError, match="holds 3 unique prompts of 4 items"):
        DpgPrompts()


TEXTS = ("a baker", "two dogs", "no cats", "a baker")
TAGS = (*genai.BASIC, *genai.ADVANCED)


def designs(folder: Path, first: int) -> Path:
    """The two files of GenAI-Bench with four prompts, numbered from `first`."""
    folder.mkdir(exist_ok=True)
    prompts = {
        f"{first + i:05}": {"id": f"{first + i:05}", "prompt": text, "models": {"DALLE_3": [5, 4]}}
        for i, text in enumerate(TEXTS)
    }
    skills = {tag: [first] for tag in TAGS} | {"counting": [first + 1, first, first + 1]}
    (folder / genai.PROMPTS).write_text(json.dumps(prompts))
    (folder / genai.SKILLS).write_text(json.dumps(skills))
    return folder


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(("target", "first"), [(GenAiPrompts, 0), (GenAi527Prompts, 1)])
def test_genai_prompts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: type[GenAiPrompts | GenAi527Prompts],
    first: int,
) -> None:
    (asset,) = target.assets
    found = prepare(asset, designs(tmp_path / "given", first))
    count = target.count
    with pytest.raises(DataError, match=f"holds 4 prompts, not {count}; run: nanogen prep") as line:
        target()
    assert "\n" not in str(line.value)
    monkeypatch.setattr(target, "count", 4)
    prompts = target()
    assert prompts.texts == TEXTS and prompts.fingerprint == found.sha256
    assert prompts.skills["counting"] == (0, 1) and prompts.skills["negation"] == (0,)
    # The last says the same as the first, and is another prompt.
    assert [prompts.skills_of(place) for place in range(4)] == [TAGS, ("counting",), (), ()]


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (genai.PROMPTS, "[]", "genai_image.json is not a JSON object"),
        (genai.PROMPTS, "{", "Expecting property name"),
        (genai.PROMPTS, '{"00000": "a"}', "at '00000'"),
        (genai.PROMPTS, '{"one": {"prompt": "a"}}', "at 'one'"),
        (genai.SKILLS, '{"counting": 3}', "no list of prompts at 'counting'"),
        (genai.SKILLS, '{"counting": []}', "no list of prompts at 'counting'"),
        (genai.SKILLS, '{"counting": [4]}', "a prompt 4 at 'counting' that is not there"),
        (genai.SKILLS, '{"counting": ["00000"]}', "a prompt '00000' at"),
        (genai.SKILLS, '{"counting": [0]}', "lacks the skills action relation, advanced"),
    ],
)
def test_genai_of_another_form(tmp_path: Path, file: str, content: str, message: str) -> None:
    folder = designs(tmp_path / "given", 0)
    (folder / file).write_text(content)
    prepare(genai.ALL, folder)
    with pytest.raises(DataError, match=message) as problem:
        GenAiPrompts()
    assert "run: nanogen prepare genai-bench-1600 --from FOLDER" in str(problem.value)
