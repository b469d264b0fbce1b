"""Every reader gives the rows that were written; what cannot be read is named with its place."""

import contextlib
import csv
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest

from langmerge_jax.data.rows import MissingSplit, read_table
from langmerge_jax.errors import InputError

ROWS = [
    {"text": "良い", "language": "ja", "n": 1, "ok": True, "options": {"text": ["A", "B"]}},
    {"text": "so\u2028la", "language": "en", "n": 2, "ok": False, "options": {"text": []}},
    {"text": 'say "x",\nplease', "language": "ja", "n": 3, "ok": None, "options": {"text": ["C"]}},
]


def json_lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_parquet(path, rows):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """`datasets` keeps a copy of what it reads; not in the user's cache."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)


@pytest.fixture
def write(tmp_path):
    """Writes a file and returns its path."""

    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def refused(path, **options):
    """The message with which `read_table` refuses; always one line."""
    with pytest.raises(InputError) as caught:
        list(read_table(str(path), **{"split": "train"} | options))
    message = str(caught.value)
    assert "\n" not in message
    return message


# Local files.


def test_json_lines_keep_values_and_lines(write):
    path = write("train.jsonl", "\ufeff\n" + json_lines(ROWS[:2]) + "\n \n" + json_lines(ROWS[2:]))
    table = read_table(path, split="train")
    assert list(table) == ROWS
    assert table[-1] == ROWS[2]
    # Blank lines and odd separators do not shift what follows.
    assert [table.place(i) for i in range(3)] == [f"{path}:{n}" for n in (2, 3, 6)]
    assert list(read_table(write("train.ndjson", json_lines(ROWS)), split="train")) == ROWS


def test_files_that_fit_a_pattern_are_one_table_in_the_order_of_their_names(write, tmp_path):
    write("ja/b.csv", "text,language\nfirst,ja\nsecond,en\n")
    write("ja/a.jsonl", json_lines([{"text": "zeroth", "language": "ja"}]))
    write_parquet(tmp_path / "ja" / "c.parquet", [{"text": "third", "language": "en"}])
    write("ja/d.csv/inner.txt", "a folder")
    table = read_table(str(tmp_path / "{language}" / "*.*"), split="train", language="ja")
    assert [row["text"] for row in table] == ["zeroth", "first", "second", "third"]
    assert table.name == f"{tmp_path}/ja/*.*"
    places = [f"{tmp_path}/ja/{x}" for x in ("a.jsonl:1", "b.csv:2", "b.csv:3")]
    assert [table.place(i) for i in range(4)] == [*places, f"{tmp_path}/ja/c.parquet: row 1"]
    some = read_table(
        str(tmp_path / "*" / "*.*"), split="train", language="en", language_field="language"
    )
    assert [row["text"] for row in some] == ["second", "third"]
    assert some.place(0) == places[2]


def test_a_pattern_that_fits_no_file_or_an_empty_one_is_named(write, tmp_path):
    with pytest.raises(MissingSplit, match=r"fr/train\*.csv: no file fits this pattern"):
        read_table(str(tmp_path / "{language}" / "{split}*.csv"), split="train", language="fr")
    write("[x]/train-1.csv", "a,b\n1,2\n")
    path = write("[x]/train-2.csv", "a,b\n")
    # Only the star is a pattern.
    assert refused(tmp_path / "[x]" / "{split}-*.csv") == f"{path}: no rows"
    write("[x]/train-2.csv", "a,b\n1,2,3\n")
    assert refused(tmp_path / "[x]" / "{split}-*.csv").startswith(f"{path}:2: 3 columns")


def test_a_json_file_holds_a_list_or_lines(write):
    path = write("list.json", json.dumps(ROWS, indent=1))
    table = read_table(path, split="train")
    assert list(table) == ROWS
    assert table.place(1) == f"{path}: row 2"
    path = write("lines.json", json_lines(ROWS))
    table = read_table(path, split="train")
    assert list(table) == ROWS
    assert table.place(1) == f"{path}:2"


def test_innermost_objects_are_rows_and_keep_their_keys(write):
    content = {
        "page": {"intro": {"document": "d1", "summary": "s1"}, "end": {"document": "d2"}},
        "no sections": {},
        "short": {"only": {"document": "d3", "more": {"a": {"b": 1}}}},
    }
    table = read_table(write("nested.json", json.dumps(content)), split="train")
    assert list(table) == [
        {"key_1": "page", "key_2": "intro", "document": "d1", "summary": "s1"},
        {"key_1": "page", "key_2": "end", "document": "d2"},
        {"key_1": "short", "key_2": "only", "document": "d3", "more": {"a": {"b": 1}}},
    ]
    # One line of JSON lines is an object too: the row itself.
    (row,) = read_table(write("one.json", json_lines(ROWS[:1])), split="train")
    assert row == ROWS[0]


@pytest.mark.parametrize(("suffix", "dialect"), [("csv", "excel"), ("tsv", "excel-tab")])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_quoted_columns_keep_newlines_quotes_and_length(tmp_path, suffix, dialect, encoding):
    path = tmp_path / f"train.{suffix}"
    rows = [
        {"text": row["text"], "tab\tand,comma": "x" * length}
        for row, length in zip([*ROWS, ROWS[0]], (0, 5, 200_000, 1), strict=True)
    ]
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), dialect=dialect)
        writer.writeheader()
        writer.writerows(rows)
    limit = csv.field_size_limit()
    table = read_table(str(path), split="train")
    assert list(table) == rows
    # The third takes two lines.
    assert [table.place(i) for i in range(4)] == [f"{path}:{n}" for n in (2, 3, 4, 6)]
    assert csv.field_size_limit() == limit


def test_parquet_keeps_types(tmp_path):
    path = tmp_path / "train.parquet"
    write_parquet(path, ROWS)
    table = read_table(str(path), split="train")
    assert list(table) == ROWS
    assert table.place(2) == f"{path}: row 3"


def test_placeholders_are_filled_in(write, tmp_path):
    write("{v1}/ja/test.jsonl", json_lines(ROWS))
    template = str(tmp_path / "{v1}" / "{language}" / "{split}.jsonl")
    assert list(read_table(template, split="test", language="ja")) == ROWS
    message = refused(template, language="de")
    assert message == f"{tmp_path}/{{v1}}/de/train.jsonl: no such file"


def test_a_language_is_picked_by_its_column(write, tmp_path):
    rows = [{k: row[k] for k in ("text", "language")} for row in ROWS]
    lines = "".join(f'"{r["text"]}",{r["language"]}\n' for r in rows[:2])
    files = {
        "jsonl": write("rows.jsonl", json_lines(rows)),
        "json": write("rows.json", json.dumps(rows)),
        "csv": write("rows.csv", "text,language\n" + lines + '"say ""x"",\nplease",ja\n'),
        "parquet": str(tmp_path / "rows.parquet"),
    }
    write_parquet(files["parquet"], rows)
    for kind, path in files.items():
        pick = {"split": "train", "language_field": "language"}
        table = read_table(path, language="ja", **pick)
        assert list(table) == [rows[0], rows[2]], kind
        # A place is counted in the file, not among the rows that were kept.
        assert table.place(1) == path + {"jsonl": ":3", "csv": ":4"}.get(kind, ": row 3")
        assert [r["text"] for r in table.where("text", "良い")] == ["良い"]
        assert table.where("text", rows[2]["text"]).place(0) == table.place(1)
        message = refused(path, language="xx", language_field="language")
        assert message == f"{path}: no row has 'xx' in the column 'language'; it holds 'en', 'ja'"
        message = refused(path, language="ja", language_field="lang")
        assert message.endswith("no column 'lang'; there are text, language")


def test_many_languages_and_odd_columns_stay_one_line(write, tmp_path):
    rows = [{"language": f"l{i:02}", "n": i, "text": f"a\nb{i} " + "x" * 500} for i in range(30)]
    rows.append({"language": None, "n": None, "text": None})
    path = tmp_path / "rows.parquet"
    write_parquet(path, [row | {"tags": ["a"]} for row in rows])
    for file in (path, write("rows.jsonl", json_lines(rows))):
        message = refused(file, language="xx", language_field="language")
        assert "'l00', 'l01', " in message
        assert message.endswith("'l19' and 10 more")
        assert len(refused(file, language="xx", language_field="text")) < 1200
        assert "'n'; it holds '0', '1', '10'" in refused(file, language="x", language_field="n")
    message = refused(path, language="xx", language_field="tags")
    assert message.endswith("the column 'tags' holds list<element: string>, not text")


def test_a_row_without_the_language_is_named(write):
    path = write("rows.jsonl", json_lines([*ROWS, {"text": "x"}]))
    message = refused(path, language="ja", language_field="language")
    assert message == f"{path}:4: no column 'language'; there are text"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"a": 1}\n{text: 1}\n', ":2: not JSON (Expecting property name"),
        ("a.jsonl", '{"a": 1}\n\n[1]\n', ":3: a JSON list, not an object"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', ":2: not UTF-8 (invalid start byte)"),
        ("a.jsonl", "", ": no rows"),
        ("a.jsonl", "\n \n", ": no rows"),
        ("a.json", "", ": no rows"),
        ("a.json", "[]", ": no rows"),
        ("a.json", '[\n{"a": 1},\n{"a" 2}]', ":3: not JSON (Expecting ':' delimiter"),
        ("a.json", '{"a": 1}\n{"a" 2}\n', ":2: not JSON (Expecting ':' delimiter"),
        ("a.json", '[{"a": 1}, 2]', ": row 2: a JSON int, not an object"),
        ("a.json", '"text"', ": a JSON str, neither a list of objects nor an object"),
        ("a.json", b'[\n{"a": "\xe3\x81"}]', ":2: not UTF-8 (invalid continuation byte)"),
        (
            "a.json",
            '{"page": {"section": {"key_1": "x"}}}',
            ": under 'page/section' lies a field 'key_1', which is the name for the key that leads "
            "there; rename the field",
        ),
        ("a.csv", "", ": no rows"),
        ("a.csv", "text,label\n", ": no rows"),
        ("a.csv", "a,b\n1,2\n\n1,2,3\n", ":4: 3 columns, the header has 2: a, b"),
        ("a.csv", 'a,b\n"1\n2",x\n1\n', ":4: 1 columns, the header has 2: a, b"),
        ("a.csv", "a,b,a\n1,2,3\n", ":1: the header has the column 'a' twice; rename one"),
        ("a.csv", 'a,b\n1,2\n"1,2\n3,4\n', ":3: unexpected end of data"),
        ("a.tsv", 'a\tb\n"1"2\t3\n', ":2: '\t' expected after '\"'"),
        ("a.csv", b"a,b\n1,2\n1,\xff\n", ":3: not UTF-8 (invalid start byte)"),
        ("a.parquet", "hello", ": not parquet (Parquet file size is 5 bytes"),
        (
            "a.txt",
            "hello",
            ": no reader for .txt; known: .jsonl, .ndjson, .json, .csv, .tsv, .parquet",
        ),
        ("rows", "hello", ": no reader for a file without suffix; known: .jsonl"),
    ],
)
def test_what_cannot_be_read_is_named_with_file_and_line(write, name, content, message):
    path = write(name, content)
    assert refused(path).startswith(path + message)


@pytest.mark.parametrize(
    ("file", "rows", "fields"),
    [
        ("sentiment_tyqiangz/{language}/valid.csv", 324, ["label", "source", "text"]),
        ("summarization_tldr/en.jsonl", 1960, ["id", "raw_path", "source", "target", "title"]),
        ("reasoning_jcommonsenseqa_ja/train-v1.3.json", 8939, ["choice0", "choice1", "choice2"]),
        ("wikilingua_hf_dummy/{language}.original_schema.json", 8, ["document", "key_1", "key_2"]),
        ("derived_bmlama53_5choice/de/{split}.jsonl", 2285, ["answerKey", "choices", "hard"]),
    ],
)
def test_published_files_are_read_as_they_are(realdata, file, rows, fields):
    table = read_table(str(realdata / file), split="train", language="english")
    assert len(table) == rows
    for row in table:
        assert set(fields) <= set(row)


def test_published_csv_says_what_the_publisher_wrote(realdata):
    path = realdata / "sentiment_tyqiangz" / "japanese" / "valid.csv"
    with path.open(encoding="utf-8", newline="") as lines:
        assert list(read_table(str(path), split="train")) == list(csv.DictReader(lines))


# Data sets in the form of the Hugging Face hub.


def test_a_local_data_set_is_filtered_by_language(tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    write_parquet(folder / "train.parquet", ROWS)
    write_parquet(folder / "validation.parquet", ROWS[:1])
    path = f"hf:{folder}"
    table = read_table(path, split="train", language="ja", language_field="language")
    assert list(table) == [ROWS[0], ROWS[2]]
    assert table.place(1) == f"{folder}[train]: row 3"
    message = refused(path, language="xx", language_field="language")
    assert message.endswith("no row has 'xx' in the column 'language'; it holds 'en', 'ja'")
    assert "no column 'lang'; there are text" in refused(path, language_field="lang")
    message = refused(path, split="test", language="ja", language_field="language")
    assert message == f"data set '{folder}': no split 'test'; there are train, validation"
    # Without a column or a folder that tells languages apart there is nothing to pick by.
    assert "'ja' not found" in refused(path, language="ja")
    assert refused("hf:").startswith("'hf:' without a name; write hf:NAME")


def test_a_folder_or_a_configuration_is_a_language(write, tmp_path):
    for language in ("en", "ja"):
        rows = [row for row in ROWS if row["language"] == language]
        write(f"rows@home/{language}/train.jsonl", json_lines(rows))
        write(f"configured/{language}-files/train.jsonl", json_lines(rows))
    configurations = "".join(
        f"- config_name: {language}\n  data_files: {language}-files/*.jsonl\n"
        for language in ("en", "ja")
    )
    write("configured/README.md", f"---\nconfigs:\n{configurations}---\n")
    for folder in ("rows@home", "configured"):
        path = f"hf:{tmp_path / folder}"
        table = read_table(path, split="train", language="ja")
        assert list(table) == [ROWS[0], ROWS[2]]
        assert table.place(1) == f"{tmp_path / folder}/ja[train]: row 2"
        assert "'fr' not found" in refused(path, language="fr")
    assert "Config name is missing" in refused(path, language="", language_field="language")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.jsonl", '{"a": 1}\n{nope\n', "JSON parse error"),
        ("train.csv", "a,b\n1,2\n1,2,3\n", "Expected 2 fields in line 3, saw 3"),
        ("train.parquet", "hello", "Parquet file size is 5 bytes"),
        ("train.jsonl", "", "StopIteration"),
        ("broken.py", "raise SystemExit", "scripts are no longer supported"),
        (".hidden", "hello", "doesn't contain any data files"),
    ],
)
def test_a_local_data_set_that_cannot_be_read_is_named(write, tmp_path, name, content, message):
    write(f"broken/{name}", content)
    said = refused(f"hf:{tmp_path / 'broken'}")
    assert said.startswith(f"data set '{tmp_path / 'broken'}': ")
    assert message in said


def said_elsewhere(path, **environment):
    """The one line that a process of its own prints when it reads; nothing else may be printed."""
    code = (
        "import sys\n"
        "from langmerge_jax.data.rows import InputError, read_table\n"
        "try:\n"
        "    table = read_table(sys.argv[1], split='train', language='ja')\n"
        "except InputError as error:\n"
        "    print(error)\n"
        "else:\n"
        "    slow = {'datasets', 'pyarrow', 'tensorflow_datasets'}\n"
        "    print(len(table), 'rows, imported:', *(slow & sys.modules.keys()))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, path],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    (line,) = result.stdout.splitlines()
    return line


@contextlib.contextmanager
def hub_that_answers(*statuses):
    """A server that answers with these statuses, the last one for ever, where 0 is no answer.

    Yields its URL, and the list of what it was asked for a data set; anything else is not there.
    """
    left, asked = list(statuses), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            status = 404
            if self.path.startswith("/datasets/"):
                asked.append(self.path)
                status = left.pop(0) if len(left) > 1 else left[0]
            if status:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()
            else:
                self.close_connection = True

        do_GET = do_HEAD

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_local_file_waits_for_no_import(write):
    assert said_elsewhere(write("train.jsonl", json_lines(ROWS))) == "3 rows, imported:"


def test_a_hub_out_of_reach_is_one_line(tmp_path):
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    said = said_elsewhere("hf:nobody/nothing", **offline)
    assert said.startswith("data set 'nobody/nothing': Couldn't reach 'nobody/nothing' on the Hub")
    assert said.endswith("; check the name and the network, or name a local directory")


# Nothing is retried after a broken connection; 503 is, and each time that is told to a logger.
@pytest.mark.parametrize("statuses", [(0,), (503, 401), (503, 404)])
def test_a_hub_that_refuses_is_one_line(tmp_path, statuses):
    with hub_that_answers(*statuses) as (url, asked):
        online = {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "HF_ENDPOINT": url}
        said = said_elsewhere("hf:nobody/nothing@v1", **online)
    assert said.startswith("data set 'nobody/nothing': ")
    assert len(asked) >= len(statuses)
    assert asked[0].startswith("/datasets/nobody/nothing/resolve/v1/")


# Data sets of TensorFlow Datasets.


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with the data set `tiny_news`, in two configurations; built without TensorFlow."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record", reason="tensorflow-datasets has it on Linux only")

    # Unregistered: the data set has to be found by its files, as a copied one is.
    class TinyNews(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("en", "mixed")]  # noqa: RUF012

        def _info(self):
            text = tfds.features.Text()
            features = {
                "id": np.int64,
                "text": text,
                "language": text,
                "label": tfds.features.ClassLabel(names=["negative", "positive"]),
                "score": np.float32,
                "ok": np.bool_,
                "tags": tfds.features.Sequence(text),
                "choices": tfds.features.Sequence({"label": text, "n": np.int64}),
                "span": tfds.features.Tensor(shape=(2,), dtype=np.int32),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(6), "test": self._generate_examples(1)}

        def _generate_examples(self, count):
            for i in range(count):
                yield i, written(i, self.builder_config.name)

    folder = tmp_path_factory.mktemp("tfds")
    for name in ("en", "mixed"):
        TinyNews(config=name, data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def written(i, config):
    """The row that was written with the id `i`."""
    return {
        "id": i,
        "text": f"良い {i}" if i != 4 or config == "en" else b"\xff\xfe",
        "language": ("en", "ja")[i % 2] if config == "mixed" else "en",
        "label": i % 2,
        "score": i / 2,
        "ok": i > 2,
        "tags": ["x", "ö"][: i % 3],
        "choices": [{"label": "A", "n": 1}, {"label": "良", "n": i}],
        "span": [i, i + 1],
    }


def read_back(i, config):
    """The same row as tfds gives it: a sequence of mappings as a mapping of sequences."""
    row = written(i, config)
    columns = {key: [choice[key] for choice in row["choices"]] for key in ("label", "n")}
    return row | {"choices": columns}


def same(value, other):
    """Equal, and of the same types all through."""
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(same(value[k], other[k]) for k in value)
    if isinstance(value, list):
        return len(value) == len(other) and all(map(same, value, other))
    return type(value) is type(other) and value == other


def test_a_prepared_data_set_gives_python_values(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    table = read_table("tfds:tiny_news/{language}:1.0.0", split="train", language="en")
    # Preparing shuffles.
    assert sorted(row["id"] for row in table) == list(range(6))
    for row in table:
        assert same(row, read_back(row["id"], "en"))
    assert table.place(1) == "tiny_news/en:1.0.0[train]: row 2"
    (row,) = read_table("tfds:tiny_news/en", split="test")
    assert row["id"] == 0


def test_a_prepared_data_set_is_filtered_by_language(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    pick = {"split": "train", "language_field": "language"}
    table = read_table("tfds:tiny_news/mixed", language="ja", **pick)
    assert sorted(row["id"] for row in table) == [1, 3, 5]
    message = refused("tfds:tiny_news/mixed", language="xx", language_field="language")
    assert message.endswith("no row has 'xx' in the column 'language'; it holds 'en', 'ja'")
    message = refused("tfds:tiny_news/mixed", language="en", language_field="lang")
    assert "tiny_news/mixed[train]: row 1: no column 'lang'; there are choices, " in message
    # One of the rows in English holds a text that is none.
    message = refused("tfds:tiny_news/mixed", language="en", language_field="language")
    assert "the field 'text' holds bytes that are not UTF-8" in message


def test_what_is_not_prepared_is_named(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    message = refused("tfds:tiny_news/en", split="validation")
    assert message == "'tfds:tiny_news/en': no split 'validation'; there are train, test"
    message = refused("tfds:no_such_news")
    assert message.endswith(f"Dataset no_such_news not found; TFDS_DATA_DIR is {prepared}")
    # Known to tfds, but nobody prepared it.
    message = refused("tfds:ag_news_subset")
    assert message == (
        f"'tfds:ag_news_subset' is not prepared, TFDS_DATA_DIR is {prepared}; prepare it with "
        "tensorflow_datasets.builder('ag_news_subset', file_format='array_record')"
        ".download_and_prepare()"
    )
    assert "cannot be loaded at version 0.0.9" in refused("tfds:ag_news_subset:0.0.9")
    message = refused("tfds:tiny news")
    assert message == "'tfds:tiny news': not of the form tfds:NAME[/CONFIG][:VERSION]"


def test_files_without_random_access_are_refused(prepared, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    folder = pathlib.Path("tiny_news/en/1.0.0")
    (tmp_path / folder).mkdir(parents=True)
    for name in ("dataset_info.json", "features.json"):
        text = (prepared / folder / name).read_text()
        (tmp_path / folder / name).write_text(text.replace("array_record", "tfrecord"))
    message = refused("tfds:tiny_news/en")
    assert "File format array_record does not match" in message
    assert "['tfrecord']" in message


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    # What an import sees where the package is not installed.
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    message = refused("tfds:tiny_news")
    assert message == (
        "'tfds:tiny_news' needs tensorflow_datasets; pip install 'langmerge-jax[tfds]'"
    )
