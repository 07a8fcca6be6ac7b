"""Profiles: one file a study, one seed of it alone, settings that are frozen by a digest, wrong ones in one sentence."""

import pytest

from mmduet2kit.errors import UserError
from mmduet2kit.profile import load_profile


def test_one_seed_of_a_study_has_the_same_settings_and_a_folder_of_its_own():
    whole, one = load_profile("study"), load_profile("study@2")
    assert (one.name, one.seeds, str(one.run_dir)) == ("study-2", [2], "runs/study-2")
    assert one.hash() == whole.hash() != load_profile("tiny").hash()
    for wrong in ("study@9", "study@", "study@two"):
        with pytest.raises(UserError, match="has no seed '.*': give one of 1, 2, 3"):
            load_profile(wrong)


def test_the_digest_is_of_the_settings_not_of_names_and_prose(tmp_path):
    text = "extends: tiny\nname: mine\npurpose: other words\nseeds: [7]\n"
    (tmp_path / "mine.yaml").write_text(text)
    (tmp_path / "other.yaml").write_text(text + "rl: {lr: 3.0e-4}\n")
    assert load_profile(str(tmp_path / "mine.yaml")).hash() == load_profile("tiny").hash()
    assert load_profile(str(tmp_path / "other.yaml")).hash() != load_profile("tiny").hash()


def test_a_setting_that_came_later_is_in_the_digest_where_it_is_set(tmp_path):
    tiny = load_profile("tiny")
    assert "segment_seconds" not in tiny.model_dump(mode="json")["rl"]
    assert tiny.at(1.0).model_copy(update={"video": tiny.video}) == tiny  # no budgets of tokens, none longer
    (tmp_path / "mine.yaml").write_text("extends: tiny\nname: mine\nrl: {segment_seconds: [20, 60]}\n")
    assert load_profile(str(tmp_path / "mine.yaml")).hash() != tiny.hash()


@pytest.mark.parametrize("text, says", [
    ("", "holds no profile"), ("- a", "holds no profile"), ("a: [", "is not valid YAML"),
    ("extends: tiny", "has no name of its own"), ("extends: nobody\nname: x", "There is no profile 'nobody'"),
    ("extends: tiny\nname: x\nrl: {lr: fast}", "'rl.lr' is wrong"), ("extends: tiny\nname: x\nbogus: 1", "'bogus' is wrong"),
    ("extends: paper\nname: x\nmodel: {hidden: null}", "'model.hidden' is wrong"), ("extends: paper\nname: x\nmodel: {path: ''}", "'model.path' is wrong"),
])  # fmt: skip
def test_a_wrong_profile_is_one_sentence(tmp_path, text, says):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=says):
        load_profile(str(path))
