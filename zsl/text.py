"""Articles -> tokens -> Porter stems -> TF-IDF (-> centred, -> LSA, -> with a sentence encoder's vectors): one vector a class.

    python -m zsl text --articles articles.jsonl --out texts.npz

The weights of terms are fitted on the articles of all classes, the unseen ones too, as published: a class's text is what
zero-shot learning is given. No label and no image is looked at.
"""

import json
import re
from functools import cache
from pathlib import Path

import numpy as np

from tinyldm.errors import UserError
from zsl.config import Text, TextConfig
from zsl.data import ClassTexts, read_npz, write_npz

TOKEN = re.compile(r"[^\W_]+")
PASSAGE = 200  # tokens that an encoder reads at a time: models of this kind were trained on such lengths


def read(file: Path) -> ClassTexts:
    """A texts.npz or an articles.jsonl.

    Raises:
        UserError: for a file that is neither, a line without its keys, or a class that is there twice.
    """
    if file.suffix == ".npz":
        return ClassTexts.from_arrays(file, read_npz(file, ("texts", "classes")))
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as articles ({error})") from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append((int(row["class_id"]), str(row.get("name", row["class_id"])), str(row["text"])))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            told = f"{type(error).__name__}: {error}"
            raise UserError(f'{file}, line {number}: write {{"class_id": 1, "name": "a", "text": "..."}} ({told})') from error
    if not rows:
        raise UserError(f"{file} holds no article")
    ids, names, articles = zip(*rows, strict=True)
    if len(set(ids)) < len(ids):
        raise UserError(f"{file}: class {max(ids, key=ids.count)} has two articles; put them into one line")
    return ClassTexts(np.array(ids), list(names), articles=list(articles))


@cache
def _stemmer():
    from nltk.stem import PorterStemmer  # rules alone: it needs none of nltk's downloads

    return cache(PorterStemmer().stem)


def stems(article: str) -> list[str]:
    """Lower-case tokens of letters and digits, stop words left out, as Porter (1980) stems them."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    stem = _stemmer()
    return [stem(token) for token in TOKEN.findall(article.lower()) if token not in ENGLISH_STOP_WORDS]


def read_terms(file: Path) -> list[str]:
    """The stems in a text file of terms, or the terms of an original ..._TFIDF_term.mat, which are stems already.

    Raises:
        UserError: when it cannot be read or is empty.
    """
    if file.suffix == ".mat":
        from zsl.originals import read_mat

        return [str(term).strip() for term in read_mat(file, "TFIDF_Term")[0].ravel()]
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the terms in {file} cannot be read ({error})") from error
    terms = sorted({stem for line in lines for stem in stems(line)})
    if not terms:
        raise UserError(f"{file} holds no term")
    return terms


def tfidf(articles: list[str], config: TextConfig, vocabulary: list[str] | None = None) -> tuple[np.ndarray, list[str]]:
    """TF-IDF (C, T) float32 with rows of length 1 (0 where an article holds no term), and the terms.

    Args:
        vocabulary: the only terms that count, in this order, however few articles have them. None: all.

    Raises:
        UserError: where no term is left.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    least = 1 if vocabulary else config.min_df
    vectorizer = TfidfVectorizer(
        analyzer=stems, sublinear_tf=config.sublinear, min_df=least, vocabulary=vocabulary, dtype=np.float32
    )
    try:
        matrix = vectorizer.fit_transform(articles).toarray()
    except ValueError as error:
        raise UserError(f"no term is in {least} articles ({error}); lower text.min_df") from error
    terms = list(vectorizer.get_feature_names_out())
    if config.emphasised:
        matrix[:, np.isin(terms, read_terms(Path(config.emphasised).expanduser()))] *= config.emphasis
    return unit(matrix), terms


def reduce(matrix: np.ndarray, components: int) -> np.ndarray:
    """LSA (Deerwester et al. 1990): the first singular directions of (C, T), rows of length 1 (C, components).

    Raises:
        UserError: for more components than classes or terms.
    """
    if components >= min(matrix.shape):
        raise UserError(
            f"text.components is {components}; {matrix.shape[0]} x {matrix.shape[1]} texts have fewer than {min(matrix.shape)}"
        )
    left, values, _ = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    # A singular vector's sign is the machine's choice: fix it, so that two machines agree.
    signs = np.sign(left[np.abs(left).argmax(0), np.arange(left.shape[1])])
    return unit((left * signs * values)[:, :components].astype(np.float32))


def encode(articles: list[str], model: str) -> np.ndarray:
    """Mean vectors (C, E), of length 1, of each article's passages by a sentence encoder (mean of its last states).

    Raises:
        UserError: when it cannot be loaded.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
        network = AutoModel.from_pretrained(model, use_safetensors=True).eval()
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise UserError(
            f"text.encoder {model} cannot be loaded ({error}); give a folder or Hub id with model.safetensors"
        ) from error
    vectors = []
    for article in articles:
        # Cut by words and not by tokens, which would have to be put together again.
        words = article.split()
        passages = [" ".join(words[i : i + PASSAGE // 2]) for i in range(0, len(words), PASSAGE // 2)] or [""]
        batch = tokenizer(passages, padding=True, truncation=True, max_length=PASSAGE, return_tensors="pt")
        with torch.no_grad():
            states = network(**batch).last_hidden_state  # (passages, tokens, E)
        mask = batch["attention_mask"][..., None]
        means = (states * mask).sum(1) / mask.sum(1)
        vectors.append(torch.nn.functional.normalize(means, dim=1).mean(0).numpy())
    return unit(np.stack(vectors))


def vectors(texts: ClassTexts, config: TextConfig, faithful: bool = False) -> tuple[np.ndarray, list[str]]:
    """Class texts (C, T) float32 by the config, and what the columns are called.

    Blocks (TF-IDF or LSA, encoder) have rows of length 1 each, so that they weigh the same. `faithful`: ready-made vectors are
    left as they are, as published.

    Raises:
        UserError: for an encoder without articles, or a class that is left without any term.
    """
    if texts.articles is None:
        if config.encoder:
            raise UserError("text.encoder needs articles, but these texts are ready-made vectors")
        matrix = texts.vectors if faithful else unit(texts.vectors)
        names = [f"text {i}" for i in range(texts.vectors.shape[1])]
    else:
        matrix, names = tfidf(texts.articles, config)
    if config.centred:
        matrix = unit(matrix - matrix.mean(0))
    if config.components:
        matrix = reduce(matrix, config.components)
        names = [f"component {i}" for i in range(config.components)]
    if config.encoder:
        encoded = encode(texts.articles, config.encoder)
        if config.centred:
            encoded = unit(encoded - encoded.mean(0))
        matrix = np.concatenate([matrix, encoded], 1) / np.float32(np.sqrt(2))
        names += [f"encoder {i}" for i in range(encoded.shape[1])]
    empty = np.flatnonzero(~matrix.any(1))
    if len(empty):
        more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
        raise UserError(
            f"class {texts.ids[empty[0]]} ({texts.names[empty[0]]}){more} has no term that counts; write more, lower "
            "text.min_df, or add text.encoder"
        )
    return matrix, names


def run(config: Text) -> str:
    """The command: write the file and say what is in it."""
    texts = read(Path(config.articles).expanduser())
    if texts.articles is None:
        raise UserError(f"{config.articles} holds vectors already; give articles.jsonl")
    matrix, names = vectors(texts, config.text)
    out = Path(config.out)
    arrays = {"texts": matrix, "classes": texts.ids, "class_names": np.array(texts.names), "terms": np.array(names)}
    write_npz(out, arrays)
    return f"{out}: {matrix.shape[0]} classes, {matrix.shape[1]} columns"


def similarities(texts: np.ndarray, seen_classes: int, count: int) -> np.ndarray:
    """Weights (C, K): cosines of each class's text to those of the `count` most similar seen classes, 0 for all others; the
    mean of the seen texts is taken away first, and a row's sum is 1.

    Args:
        texts: of all classes, the seen ones first (C, T).
        seen_classes: K.
    """
    centred = unit(texts - texts[:seen_classes].mean(0))
    cosines = centred @ centred[:seen_classes].T
    nearest = np.argsort(-cosines, 1, kind="stable")[:, :count]
    weights = np.zeros_like(cosines)
    np.put_along_axis(weights, nearest, np.take_along_axis(cosines, nearest, 1).clip(1e-6), 1)
    return weights / weights.sum(1, keepdims=True)


def conditions(texts: np.ndarray, seen_classes: int, anchors: int | None, length: float) -> np.ndarray:
    """What a generator is given of the classes' texts (C, T), seen ones first: TextConfig.anchors, ModelConfig.text_length."""
    if anchors:
        texts = unit(similarities(texts, seen_classes, anchors))
    return texts * np.float32(length)


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows (N, D) of length 1, 0 where they are 0: their products are cosines."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)
