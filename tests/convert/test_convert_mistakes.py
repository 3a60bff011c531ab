"""Each mistake in a table or in the flags: it is named, and nothing is written."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from made_sources import convert, refusal, write_image, write_table

IMAGE_ROWS = ("a.png,1,Mass", "b.png,2,No Finding")
BOX_ROWS = ("a.png,Mass,10,10,50,50",)


def small_table(tmp_path: Path, images: Sequence[str], boxes: Sequence[str]) -> list[object]:
    for name in ("a.png", "b.png", "sub/c.png", "sub2/c.png", "=d.png"):
        write_image(tmp_path / "img" / name)
    table = write_table(tmp_path / "t.csv", "image,who,Dx", *images)
    box_table = write_table(tmp_path / "b.csv", "image,finding,x,y,w,h", *boxes)
    return [
        *("--from=table", f"--in={table}", f"--boxes={box_table}", f"--out={tmp_path / 'out'}"),
        *(f"--images={tmp_path / 'img'}", "--columns=image=image,patient=who,labels=Dx"),
    ]


@pytest.mark.parametrize(
    "row, message",
    [
        ("a.png,1,Mass", "has an image twice: row 4 (a.png)"),
        ("z.png,3,Mass", "names an image that does not exist: row 4 (z.png)"),
        ("B.PNG,3,Mass", "in other upper and lower case: row 4 (B.PNG): b.png"),
        ("c.png,3,Mass", "several files could be: row 4 (c.png)"),
        ("=d.png,3,Mass", "begins with '=', so that a spreadsheet would run it as a formula"),
        ("sub/c.png,@3,Mass", "has a patient whose name begins with '@'"),
        ("sub/c.png,,Mass", "has a patient whose name is blank: row 4 (sub/c.png)"),
        ("sub/c.png,3,+Mass", "has a finding whose name begins with '+'"),
        ("sub/c.png,3,", "may mean no finding or not known: row 4 (sub/c.png)"),
        ("sub/c.png,3,Mass|", "has a blank label beside another"),
        ("sub/c.png,3,Mass|normal", "has a finding beside no finding"),
        ("sub/c.png,3,Mass;Mass", "names a finding twice in one cell"),
        ("sub/c.png,3,mass", "differ only in case, spaces or signs: 'Mass' and 'mass'"),
        ("sub/c.png,3,view", "called like a column of images.csv: 'view'"),
        ('sub/c.png,3,"Mass,Cyst"', "has a finding whose name holds a separator"),
        ("sub/c.png,3", "has a row with too few cells: row 4"),
        ('sub/c.png,3,"Mass', "has a quotation mark that its line does not close: row 4"),
        ("sub/c\x07.png,3,Mass", "names an image that does not exist: row 4 (sub/c?.png)"),
        (f"{'c' * 400}.png,3,Mass", "names an image that does not exist"),
    ],
)
def test_a_wrong_row_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: str, message: str
) -> None:
    arguments = small_table(tmp_path, [*IMAGE_ROWS, row], BOX_ROWS)
    assert message in refusal(arguments, capsys, tmp_path / "out")


def test_two_files_of_one_name_are_refused_with_both_paths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*IMAGE_ROWS, "sub/c.png,3,Mass", "sub2/c.png,4,Mass"]
    text = refusal(small_table(tmp_path, rows, BOX_ROWS), capsys, tmp_path / "out")
    both = (tmp_path / "img" / folder / "c.png" for folder in ("sub", "sub2"))
    assert "names two files of one name: {} and {}".format(*both) in text


@pytest.mark.parametrize(
    "row, message",
    [
        ("a.png,Mass,10,10,0,5", "has a box without an area: row 3 (a.png Mass) 10, 10, 0, 5"),
        ("a.png,Mass,10,10,5,-5", "has a box without an area"),
        ("a.png,Mass,ten,10,5,5", "has a box whose sides are no numbers"),
        ("a.png,Mass,nan,10,5,5", "has a box whose sides are no numbers"),
        ("a.png,Mass,1_0,10,5,5", "has a box whose sides are no numbers"),
        ('a.png,Mass,"10,5",10,5,5', "a decimal has a point, not a comma"),
        ("a.png,Mass,150,10,51,5", "1 of 2 boxes lie partly outside their image, so that they may"),
        ("a.png,Mass,-2,10,51,5", "1 of 2 boxes lie partly outside their image"),
        (BOX_ROWS[0], "has a box twice: row 3 (a.png Mass)"),
        ("a.png,Mass,199.4,10,1.1,50", "less than one pixel wide or high"),  # once it is cut
        ("a.png,Mass,0.1,0.1,0.5,0.5", "less than one pixel wide or high"),
        (
            "a.png,Masss,10,10,5,5",
            "finding 'Masss' is no label: row 3 (a.png Masss). Fix: write 'Mass'",
        ),
        ("b.png,Mass,10,10,5,5", "has a box of a finding that its image does not have"),
        ("sub2/c.png,Mass,10,10,5,5", "has a box of an image without a row"),
        ("q.png,Mass,10,10,5,5", "names an image that does not exist: row 3"),
        ('"a.png,Mass,10,10,5,5', "has a quotation mark that its line does not close: row 3"),
    ],
)
def test_a_wrong_box_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: str, message: str
) -> None:
    arguments = small_table(tmp_path, [*IMAGE_ROWS, "sub/c.png,3,Mass"], [*BOX_ROWS, row])
    text = refusal(arguments, capsys, tmp_path / "out")
    assert message in text
    assert "b.csv: " in text


def test_corners_under_the_names_of_width_and_height_are_recognised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["a.png,Mass,20,20,120,80", "a.png,Mass,120,20,190,80"]
    text = refusal(small_table(tmp_path, IMAGE_ROWS, rows), capsys, tmp_path / "out")
    assert "as if w and h were the lower right corner" in text


def test_one_message_lists_ten_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"a.png,Wrong{k},10,10,5,5" for k in range(14)]
    text = refusal(small_table(tmp_path, IMAGE_ROWS, rows), capsys, tmp_path / "out")
    assert "because of 14 problem(s)" in text
    assert "\n  10. b.csv" in text
    assert "\n  11." not in text
    assert "and 4 more" in text


def test_a_label_a_split_and_a_patient_in_two_splits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "abc":
        write_image(tmp_path / f"{name}.png")
    write_image(tmp_path / "d.png")
    rows = ("d.png,9,,1", "a.png,7,train,1", "b.png,7,test,yes", "c.png,8,fold1,0")
    table = write_table(tmp_path / "t.csv", "image,who,set,Mass", *rows)
    columns = "--columns=image=image,patient=who,split=set,findings=Mass"
    arguments = ["--from=table", f"--in={table}", columns, f"--out={tmp_path / 'out'}"]
    text = refusal(arguments, capsys, tmp_path / "out")
    assert "has a label that is no number: row 4 (b.png) Mass 'yes'" in text
    assert "has a split of another name: row 5 (c.png) 'fold1'" in text
    assert "has images without a split beside others: d.png" in text
    assert "has a patient in two splits: 7: a.png train, b.png test" in text


@pytest.mark.parametrize(
    "change, message",
    [
        (["--columns=image=File,labels=Dx"], "t.csv: has no column 'File'. Fix: use its own columns: image, who, Dx"),
        (["--columns=labels=Dx"], "names no image column"),
        (["--columns=image=image,dx=Dx"], "'dx=Dx' cannot be used; write ROLE=COLUMN"),
        (["--columns=image=image,labels=Dx,findings=Dx"], "give one of them"),
        (["--box_finding=Mass", "--box_columns=image=image,finding=finding,x=x,y=y,w=w,h=h"], "or by --box_finding"),
        (["--box_columns=image=image,finding=finding,x=x,y=y,x1=w,y1=h"], "must name x=, y=, w= and h="),
        (["--any_view"], "--any_view has no effect with --from=table"),
        (["--in=other.csv"], "--in must be given once"),
        (["--images=nowhere"], "--images=nowhere is no folder"),
    ],
)  # fmt: skip
def test_a_wrong_flag_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str], message: str
) -> None:
    arguments = [*small_table(tmp_path, IMAGE_ROWS, BOX_ROWS), *change]
    assert message in refusal(arguments, capsys, tmp_path / "out")


def test_another_separator_is_proposed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = small_table(tmp_path, IMAGE_ROWS, BOX_ROWS)
    write_table(tmp_path / "t.csv", "image;who;Dx", "a.png;1;Mass")
    text = refusal(arguments, capsys, tmp_path / "out")
    assert "its cells seem to be separated by a semicolon; give --separator" in text


def test_a_folder_with_files_is_not_touched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = small_table(tmp_path, IMAGE_ROWS, BOX_ROWS)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert "holds other files" in refusal(arguments, capsys, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    (tmp_path / "out" / "mine.txt").unlink()
    assert convert(*arguments) == 0


def test_an_interruption_leaves_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    arguments = [*small_table(tmp_path, IMAGE_ROWS, BOX_ROWS), "--copy"]
    monkeypatch.setattr(shutil, "copyfile", stop)
    before = set(tmp_path.iterdir())
    assert convert(*arguments) == 75
    assert set(tmp_path.iterdir()) == before
    assert "Stopped. Nothing was written." in capsys.readouterr().err


def test_a_file_that_cannot_be_copied_leaves_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: Path, target: Path) -> None:
        if source.name == "b.png":
            raise OSError(28, "No space left on device")
        target.write_bytes(b"")

    arguments = [*small_table(tmp_path, IMAGE_ROWS, BOX_ROWS), "--copy"]
    monkeypatch.setattr(shutil, "copyfile", fail)
    assert "No space left on device" in refusal(arguments, capsys, tmp_path / "out")
