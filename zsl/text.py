"""Turn articles into one vector per class: tokens, Porter stems, TF-IDF, optionally centred, LSA, and a sentence encoder.

    python -m zsl text --articles articles.jsonl --out texts.npz

The term weights are fitted on the articles of all classes, including the unseen ones, as published: zero-shot learning may use
the text of an unseen class. No labels or images are used.
"""

import contextlib
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from tinyldm.errors import UserError, boundary
from tinyldm.files import refuse_existing
from tinyldm.limits import check_finite, read_text
from tinyldm.remote import from_hub, may_be_hub_id
from zsl.config import Text, TextConfig
from zsl.data import ClassTexts, read_npz, write_npz
from zsl.originals import read_mat

TOKEN = re.compile(r"[^\W_]+")
ARTICLES_BYTES = 2**28  # Wikipedia's articles of 10,000 classes
PASSAGE = 200  # tokens that an encoder reads at once: such models were trained on texts of this length


def read(file: Path) -> ClassTexts:
    """Read a texts.npz or an articles.jsonl.

    Raises:
        UserError: if the file is neither, a line has missing keys, or a class occurs twice.
    """
    if file.suffix == ".npz":
        return ClassTexts.from_arrays(file, read_npz(file, ("texts", "classes")))
    with boundary(f"{file} cannot be read as articles"):
        lines = [line for line in read_text(file, ARTICLES_BYTES).split("\n") if line.strip()]
    rows = []
    for number, line in enumerate(lines, 1):
        with boundary(f'{file}, line {number}: write {{"class_id": 1, "name": "a", "text": "..."}}'):
            row = json.loads(line)
            if row["class_id"] != int(row["class_id"]) or not -(2**63) <= row["class_id"] < 2**63:
                raise ValueError(f"class_id {row['class_id']} is not a whole number")
            if not isinstance(row["text"], str):
                raise ValueError("the text is no text")
            rows.append((int(row["class_id"]), str(row.get("name", row["class_id"])), row["text"]))
    if not rows:
        raise UserError(f"{file} contains no article; write one line per class")
    ids, names, articles = zip(*rows, strict=True)
    if len(set(ids)) < len(ids):
        raise UserError(f"{file}: class {max(ids, key=ids.count)} has two articles; join them in one line")
    return ClassTexts(np.array(ids), list(names), articles=list(articles))


@cache
def _stemmer() -> Callable[[str], str]:
    from nltk.stem import PorterStemmer  # consists of rules only, so nltk downloads nothing

    return cache(PorterStemmer().stem)


def stems(article: str) -> list[str]:
    """Porter (1980) stems of the lower-case tokens of letters and digits, without stop words."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    stem = _stemmer()
    return [stem(token) for token in TOKEN.findall(article.lower()) if token not in ENGLISH_STOP_WORDS]


def read_terms(file: Path) -> list[str]:
    """Read the stems in a text file of terms, or the terms of an original ..._TFIDF_term.mat, which are already stems.

    Raises:
        UserError: if the file cannot be read or is empty.
    """
    if file.suffix == ".mat":
        return [str(term).strip() for term in read_mat(file, "TFIDF_Term")[0].ravel()]
    with boundary(f"the terms in {file} cannot be read"):
        lines = [line for line in read_text(file).splitlines() if not line.startswith("#")]
    terms = sorted({stem for line in lines for stem in stems(line)})
    if not terms:
        raise UserError(f"{file} contains no terms; write some, or remove text.emphasised")
    return terms


def tfidf(articles: list[str], config: TextConfig, vocabulary: list[str] | None = None) -> tuple[np.ndarray, list[str]]:
    """TF-IDF (C, T) float32 with rows of length 1 (0 if an article has no term), and the terms.

    Args:
        vocabulary: use only these terms, in this order, even if few articles have them. None: use all terms.

    Raises:
        UserError: if no term is left.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    min_df = 1 if vocabulary else config.min_df
    vectorizer = TfidfVectorizer(
        analyzer=stems, sublinear_tf=config.sublinear, min_df=min_df, vocabulary=vocabulary, dtype=np.float32
    )
    try:
        matrix = vectorizer.fit_transform(articles).toarray()
    except ValueError as error:
        raise UserError(f"no term occurs in {min_df} articles ({error}); lower text.min_df") from error
    terms = list(vectorizer.get_feature_names_out())
    if config.emphasised:
        matrix[:, np.isin(terms, read_terms(Path(config.emphasised).expanduser()))] *= config.emphasis
    return unit(matrix), terms


def reduce(matrix: np.ndarray, components: int) -> np.ndarray:
    """LSA (Deerwester et al. 1990): project (C, T) on its first singular directions; rows have length 1 (C, components).

    Raises:
        UserError: if there are not more classes and terms than components.
    """
    classes, terms = matrix.shape
    if components >= min(classes, terms):
        raise UserError(f"text.components is {components}; with {classes} classes and {terms} terms, use fewer than either")
    left, values, _ = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    # The sign of a singular vector is arbitrary: fix it so that results agree across machines.
    signs = np.sign(left[np.abs(left).argmax(0), np.arange(left.shape[1])])
    return unit((left * signs * values)[:, :components].astype(np.float32))


def encode(articles: list[str], model: str) -> np.ndarray:
    """Vectors (C, E) of length 1 from a sentence encoder: its last states, averaged over tokens and then over passages.

    Args:
        model: a folder or Hub id.

    Raises:
        UserError: if the model cannot be loaded.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    local = Path(model).expanduser()
    if not local.is_dir() and not may_be_hub_id(model):
        raise UserError(f"text.encoder {model} does not exist; use a folder or Hub id with model.safetensors")
    source = contextlib.nullcontext(True) if local.is_dir() else from_hub(model)
    with boundary(f"text.encoder {model} cannot be loaded", "use a folder or Hub id with model.safetensors"), source as on_disk:
        name = str(local) if local.is_dir() else model
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=on_disk)
        network = AutoModel.from_pretrained(name, use_safetensors=True, local_files_only=on_disk).eval()
        check_finite(network.state_dict())
    rows = []
    for article in articles:
        # Split by words: tokens would have to be joined again.
        words = article.split()
        passages = [" ".join(words[i : i + PASSAGE // 2]) for i in range(0, len(words), PASSAGE // 2)] or [""]
        batch = tokenizer(passages, padding=True, truncation=True, max_length=PASSAGE, return_tensors="pt")
        with torch.no_grad():
            states = network(**batch).last_hidden_state  # (passages, tokens, E)
        mask = batch["attention_mask"][..., None]
        means = (states * mask).sum(1) / mask.sum(1)
        rows.append(torch.nn.functional.normalize(means, dim=1).mean(0).numpy())
    return unit(np.stack(rows))


def vectors(texts: ClassTexts, config: TextConfig, faithful: bool = False) -> tuple[np.ndarray, list[str]]:
    """Vectors (C, T) float32 of the class texts, and the names of their columns.

    The TF-IDF or LSA part and the encoder part each have rows of length 1, so that they have the same weight.

    Args:
        faithful: do not scale precomputed vectors, as published.

    Raises:
        UserError: if there is an encoder but no articles, or if a class has no term left.
    """
    if texts.articles is not None:
        matrix, names = tfidf(texts.articles, config)
    elif texts.vectors is None:
        raise ValueError("texts need articles or vectors")
    elif config.encoder:
        raise UserError("text.encoder needs articles, but these texts are vectors; set data.texts to an articles.jsonl")
    else:
        matrix = texts.vectors if faithful else unit(texts.vectors)
        names = [f"text {i}" for i in range(texts.vectors.shape[1])]
    if config.centred:
        matrix = unit(matrix - matrix.mean(0))
    if config.components:
        matrix = reduce(matrix, config.components)
        names = [f"component {i}" for i in range(config.components)]
    if config.encoder and texts.articles is not None:
        encoded = encode(texts.articles, config.encoder)
        if config.centred:
            encoded = unit(encoded - encoded.mean(0))
        matrix = np.concatenate([matrix, encoded], 1) / np.float32(np.sqrt(2))
        names += [f"encoder {i}" for i in range(encoded.shape[1])]
    empty = np.flatnonzero(~matrix.any(1))
    if len(empty):
        more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
        raise UserError(
            f"class {texts.ids[empty[0]]} ({texts.names[empty[0]]}){more} has no term in the vocabulary; write more text, "
            "lower text.min_df, or set text.encoder"
        )
    return matrix, names


def run(config: Text) -> str:
    """Write the file and describe it."""
    out = Path(config.out)
    terms = [Path(config.text.emphasised)] if config.text.emphasised else []
    refuse_existing(out, config.overwrite, Path(config.articles).expanduser(), *terms)
    texts = read(Path(config.articles).expanduser())
    if texts.articles is None:
        raise UserError(f"{config.articles} already contains vectors; use an articles.jsonl")
    matrix, names = vectors(texts, config.text)
    arrays = {"texts": matrix, "classes": texts.ids, "class_names": np.array(texts.names), "terms": np.array(names)}
    write_npz(out, arrays)
    return f"{out}: {matrix.shape[0]} classes, {matrix.shape[1]} columns"


def similarities(texts: np.ndarray, seen_classes: int, count: int) -> np.ndarray:
    """Similarities (C, K) of each class to the `count` seen classes with the most similar texts; 0 for all others.

    Similarity is the cosine, after the mean of the seen texts is subtracted. Each row sums to 1.

    Args:
        texts: texts of all classes, seen classes first (C, T).
        seen_classes: K.
    """
    centred = unit(texts - texts[:seen_classes].mean(0))
    cosines = centred @ centred[:seen_classes].T
    nearest = np.argsort(-cosines, 1, kind="stable")[:, :count]
    weights = np.zeros_like(cosines)
    np.put_along_axis(weights, nearest, np.take_along_axis(cosines, nearest, 1).clip(1e-6), 1)
    return weights / weights.sum(1, keepdims=True)


def conditions(texts: np.ndarray, seen_classes: int, anchors: int | None, length: float) -> np.ndarray:
    """The generator's input for class texts (C, T), seen classes first: see TextConfig.anchors and ModelConfig.text_length."""
    if anchors:
        texts = unit(similarities(texts, seen_classes, anchors))
    return texts * np.float32(length)


def unit(rows: np.ndarray) -> np.ndarray:
    """Scale rows (N, D) to length 1, so that their products are cosines. Rows of zeros stay 0."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)
