"""Hugging Face's InferenceClient."""

from __future__ import annotations

import json
from importlib.metadata import version

from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from reporting import GOLDEN, HTTP, PHOTO, check, compared

client = InferenceClient(model=HTTP)
LABELS = ["cat", "coffee", "rocket"]


def classified() -> str:
    found = client.zero_shot_image_classification(
        PHOTO, candidate_labels=LABELS, hypothesis_template="a photo of a {}"
    )
    expected = GOLDEN["classify"]["cat.jpg"]
    assert [each.label for each in found] == sorted(LABELS, key=lambda label: -expected[label])
    assert all(abs(each.score - expected[each.label]) <= 1e-4 for each in found)
    return f"{found[0].label} {found[0].score:.6f}"


def extracted() -> str:
    return compared(client.feature_extraction("a cat").tolist(), [GOLDEN["texts"]["a cat"]])


def compared_sentences() -> str:
    (found,) = client.sentence_similarity("a cat", other_sentences=["a cup of coffee"])
    texts = GOLDEN["texts"]
    expected = sum(a * b for a, b in zip(texts["a cat"], texts["a cup of coffee"], strict=True))
    assert abs(found - expected) <= 1e-4
    return f"similarity {found:.6f}"


def refused() -> str:
    try:
        client.feature_extraction(" ")
    except HfHubHTTPError as error:
        assert "inputs: " in str(error)
        return str(error).splitlines()[-1]
    raise AssertionError("not refused")


print(
    json.dumps({"client": "huggingface_hub", "versions": {"huggingface_hub": version("huggingface_hub")}}),
    flush=True,
)
check("zero-shot image classification", classified)
check("feature extraction", extracted)
check("sentence similarity", compared_sentences)
check("an error names the field", refused)
