"""Options that do not fit each other are refused in one line."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("arguments", "objective", "said"),
    [
        ([], "clasification", "did you mean 'classification'"),
        ([], "contrastive", "needs --text"),
        (["--unfreeze", "last"], "classification", "expected none, last:K"),
        (["--unfreeze", "last:9"], "classification", "has 2 blocks"),
        (["--set", "classification.hiden=3"], "classification", "did you mean 'hidden'"),
        (["--set", "sigmoid.bias=3"], "classification", "objective of this run"),
        (["--augment", "flop"], "classification", "did you mean 'flip'"),
        (["--choose", "rocauc"], "classification", "did you mean 'roc_auc'"),
        (["--track", "tensorbord"], "classification", "did you mean 'tensorboard'"),
        (["--text", "caption"], "classification", "leave it out"),
        (["--text-unfreeze", "all"], "classification", "no --text-encoder was named"),
        (["--text-lr", "0.5"], "classification", "no --text-encoder was named"),
        (["--text", "caption", "--sample-weight", "label"], "captioning", "nothing of --objective captioning uses it"),
        (["--sample-weight", "lable"], "classification", "did you mean 'label'"),
        (["--template", "{finding}"], "classification", "--template and --prompts: judge aligned pairs"),
        (["--pooling", "tokens"], "classification", "makes no vector of a sample"),
        (["--pooling", "learned:max"], "classification", "did you mean 'learned:attention'"),
        (["--pooling", "learned:attention", "--warm-start", "x"], "classification", "makes others"),
        (["--pooling", "learned:attention", "--text", "caption"], "captioning", "reads the vector"),
        (["--text-pooling", "learned:attention"], "classification", "no --text-encoder was named"),
        (["--max-views", "3"], "classification", "--max-views: is for studies"),
        (["--single-view", "0.3"], "classification", "--single-view: is for studies"),
        (["--view-dropout", "0.3"], "classification", "--view-dropout: is for studies"),
        (["--consistency", "0.2"], "classification", "--consistency: is for studies"),
        (["--bag", "patient", "--view-dropout", "1"], "classification", "less than 1"),
        (["--bag", "patient", "--single-view", "-0.1"], "classification", "greater than or equal to 0"),
        (["--bag", "patient", "--consistency", "nan"], "classification", "consistency"),
        (["--bag", "patient", "--weight", "consistency=1"], "classification", "leave it out of --weight"),
        (["--teacher", "nowhere"], "classification", "nowhere: does not exist"),
        (["--set", "classification.teacher_weight=1"], "classification", "there is no teacher"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(tuned, arguments, objective: str, said: str) -> None:
    result, run = tuned(*arguments, objective=objective)
    assert result.code == 2
    assert said in result.error
    assert "Traceback" not in result.err
    assert not (run / "record.json").exists()
