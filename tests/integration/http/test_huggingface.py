"""Hugging Face's tasks: which one a request is for, and its answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.integration.http.dialects import IMAGE, IMAGE_URI
from tests.integration.http.ports import Shared, in_module_loop, serving
from tests.integration.serving import classify_request

PICTURE = b"picture"


async def infer(client: Any, body: dict[str, Any], path: str = "/") -> Any:
    """Returns the answer of a request that succeeds."""
    answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@in_module_loop
@pytest.mark.parametrize("path", ["/", "/models/fake", "/pipeline/zero-shot-image-classification"])
@pytest.mark.parametrize("image", [IMAGE, IMAGE_URI, {"image": IMAGE}])
async def test_an_image_is_scored_against_labels(shared: Shared, path: str, image: Any) -> None:
    """Best label first, with the scores and similarities of Classify, in one list."""
    body = {
        "inputs": image,
        "parameters": {"candidate_labels": ["cat", "dog"], "hypothesis_template": "one {} here"},
    }
    served, client = shared
    answer = await infer(client, body, path)
    expected = await served.stub.Classify(
        classify_request(PICTURE, "cat", "dog", prompt_templates=["one {label} here"])
    )

    assert [each["label"] for each in answer] == [each.label for each in expected.results[0].classifications]
    for key in ("score", "similarity"):
        np.testing.assert_allclose(
            [each[key] for each in answer],
            [getattr(each, key) for each in expected.results[0].classifications],
            rtol=1e-6,
        )


async def test_the_template_is_that_of_the_pipeline_unless_given() -> None:
    """So the scores are those of transformers with the same arguments."""
    parameters = {"candidate_labels": ["cat", "dog"]}
    template = {"hypothesis_template": "This is a photo of {}."}
    async with serving() as (_, client):
        default = await infer(client, {"inputs": IMAGE, "parameters": parameters})
        given = await infer(client, {"inputs": IMAGE, "parameters": {**parameters, **template}})

    assert default == given


async def test_several_images_have_a_list_each() -> None:
    """Labels may be one string with commas, also behind the last one; `top_k` shortens each list."""
    body = {"inputs": [IMAGE, IMAGE_URI], "parameters": {"candidate_labels": "cat, dog, ", "top_k": 1}}
    async with serving() as (_, client):
        one, other = await infer(client, body)

    assert one == other
    assert len(one) == 1
    assert one[0]["label"] in ("cat", "dog")


@in_module_loop
@pytest.mark.parametrize(
    "path", ["/", "/models/fake/pipeline/feature-extraction", "/pipeline/feature-extraction/fake"]
)
async def test_features_are_embeddings(shared: Shared, path: str) -> None:
    """A list of them, also for one text."""
    served, client = shared
    one = await infer(client, {"inputs": "a cat"}, path)
    several = await infer(client, {"inputs": ["a cat", IMAGE_URI], "normalize": True}, path)

    expected = [served.encoder.embedding_of("a cat"), served.encoder.embedding_of(PICTURE)]
    np.testing.assert_allclose(one, expected[:1], atol=1e-6)
    np.testing.assert_allclose(several, expected, atol=1e-6)


@in_module_loop
@pytest.mark.parametrize("path", ["/", "/similarity", "/models/fake/pipeline/sentence-similarity"])
async def test_sentences_are_compared(shared: Shared, path: str) -> None:
    """The cosine of each to the source; text-embeddings-inference has the same at a path of its own."""
    body = {"inputs": {"source_sentence": "a cat", "sentences": ["a dog", "a cat", IMAGE_URI]}}
    served, client = shared
    found = await infer(client, body, path)

    inputs: list[str | bytes] = ["a cat", "a dog", "a cat", PICTURE]
    source, *others = [served.encoder.embedding_of(each) for each in inputs]
    np.testing.assert_allclose(found, [source @ other for other in others], atol=1e-6)
    assert max(found) <= 1.0


@in_module_loop
@pytest.mark.parametrize("inputs", ["w " * 100, {"source_sentence": "a", "sentences": ["w " * 100]}])
@pytest.mark.parametrize("options", [{"truncate": True}, {"parameters": {"truncate": True}}])
async def test_options_are_read_in_parameters_too(
    shared: Shared, inputs: Any, options: dict[str, Any]
) -> None:
    """Clients differ in where they send them."""
    _, client = shared
    assert len(await infer(client, {"inputs": inputs, **options})) == 1


async def test_an_answer_larger_than_the_limit_names_the_labels() -> None:
    """By the name that they have here."""
    body = {"inputs": IMAGE, "parameters": {"candidate_labels": [f"label {i}" for i in range(50)]}}
    async with serving(max_response_bytes=4000) as (_, client):
        answer = await client.post("/", json=body)

    assert (answer.status_code, answer.json()["error_type"]) == (400, "LABELS_INVALID")
    assert answer.json()["error"].startswith("parameters.candidate_labels: the response could have up to")


LABELS = {"candidate_labels": ["cat", "dog"]}
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({}, "REQUEST_EMPTY", "inputs: is missing"),
    ({"inputs": []}, "REQUEST_EMPTY", "inputs: no inputs"),
    ({"inputs": ["a", 1]}, "ARGUMENT_INVALID", "inputs[1]: is a number"),
    ({"inputs": "a", "truncation_direction": "left"}, "ARGUMENT_INVALID", "truncation_direction: 'left'"),
    (
        {"inputs": "a", "encoding_format": "base64"},
        "ARGUMENT_INVALID",
        "encoding_format: 'base64' is unknown",
    ),
    (
        {"inputs": "a", "parameters": {"normalize": "no"}},
        "ARGUMENT_INVALID",
        "parameters.normalize: is a string",
    ),
    ({"inputs": "w " * 100}, "TEXT_TOO_LONG", "inputs: text has"),
    ({"parameters": LABELS}, "REQUEST_EMPTY", "inputs: is missing"),
    ({"inputs": "not base64!", "parameters": LABELS}, "IMAGE_UNREADABLE", "inputs: the image is not"),
    ({"inputs": "http://a/b.png", "parameters": LABELS}, "ARGUMENT_INVALID", "inputs: http URLs are not"),
    ({"inputs": [IMAGE, "YnJva2Vu"], "parameters": LABELS}, "IMAGE_UNREADABLE", "inputs[1]: image is"),
    ({"inputs": {"image": "YnJva2Vu"}, "parameters": LABELS}, "IMAGE_UNREADABLE", "inputs.image: image is"),
    ({"inputs": [IMAGE] * 65, "parameters": LABELS}, "BATCH_TOO_LARGE", "inputs: 65 images, limit 64"),
    (
        {"inputs": IMAGE, "parameters": {"candidate_labels": []}},
        "LABELS_INVALID",
        "parameters.candidate_labels: 0 labels",
    ),
    (
        {"inputs": IMAGE, "parameters": {"candidate_labels": ["cat", " "]}},
        "LABELS_INVALID",
        "parameters.candidate_labels[1]: label is blank",
    ),
    (
        {"inputs": IMAGE, "parameters": {**LABELS, "hypothesis_template": ""}},
        "TEMPLATE_INVALID",
        "parameters.hypothesis_template: write {} exactly once",
    ),
    (
        {"inputs": IMAGE, "parameters": {**LABELS, "hypothesis_template": "a photo"}},
        "TEMPLATE_INVALID",
        "parameters.hypothesis_template: write {} exactly once",
    ),
    (
        {"inputs": IMAGE, "parameters": {**LABELS, "top_k": -1}},
        "ARGUMENT_INVALID",
        "parameters.top_k: -1 is negative",
    ),
    ({"inputs": {"sentences": ["a"]}}, "REQUEST_EMPTY", "inputs.source_sentence: is missing"),
    (
        {"inputs": {"source_sentence": [], "sentences": ["a"]}},
        "ARGUMENT_INVALID",
        "inputs.source_sentence: is a list; send a string",
    ),
    (
        {"inputs": {"source_sentence": "a", "sentences": []}},
        "REQUEST_EMPTY",
        "inputs.sentences: is empty",
    ),
    (
        {"inputs": {"source_sentence": "a", "sentences": ["b", ""]}},
        "TEXT_EMPTY",
        "inputs.sentences[1]: text is empty",
    ),
]


@in_module_loop
@pytest.mark.parametrize(("body", "kind", "message"), REFUSED, ids=lambda value: repr(value)[:60])
async def test_refusals_name_the_field_of_the_caller(
    shared: Shared, body: dict[str, Any], kind: str, message: str
) -> None:
    """In the text of the error, since the shape has no field for it."""
    _, client = shared
    answer = await client.post("/", json=body)

    error = answer.json()
    assert (answer.status_code, error["error_type"]) == (400, kind)
    assert error["error"].startswith(message)


async def test_other_tasks_and_models_are_refused() -> None:
    """With the tasks and the model that are served."""
    async with serving() as (_, client):
        task = await client.post("/pipeline/fill-mask", json={"inputs": "a"})
        model = await client.post("/models/openai/clip-vit-base-patch32", json={"inputs": "a"})

    assert task.status_code == 400
    assert "use one of feature-extraction" in task.json()["error"]
    assert (model.status_code, model.json()["error_type"]) == (404, "MODEL_UNKNOWN")
