import json
import math
import socket

import numpy as np
import pytest
from nltk.stem import PorterStemmer

from tests.support import zsl as support
from tinyldm.errors import UserError
from zsl import text
from zsl.config import Text, TextConfig
from zsl.data import ClassTexts

ARTICLES = ["Red petals, red petals and blue.", "Blue petal; the bluest of flowers!", "A thorny shrub flowering in red."]


def test_stems_are_porter_stems_without_stop_words_and_downloads(monkeypatch):
    monkeypatch.setattr(socket, "socket", None)  # other parts of nltk would download data
    text._stemmer.cache_clear()
    assert text.stems("The FLOWERING, flowered flowers of 2 daisies_x") == ["flower", "flower", "flower", "2", "daisi", "x"]
    assert text.stems(ARTICLES[2]) == [PorterStemmer().stem(word) for word in ("thorny", "shrub", "flowering", "red")]


@pytest.mark.parametrize("sublinear", [False, True])
def test_tfidf_equals_its_formula(sublinear):
    """The definition of scikit-learn: tf (or 1 + log tf) times ln((1 + n) / (1 + df)) + 1, with rows of length 1."""
    matrix, terms = text.tfidf(ARTICLES, TextConfig(min_df=1, sublinear=sublinear))
    documents = [text.stems(article) for article in ARTICLES]
    assert terms == sorted({stem for document in documents for stem in document})
    for row, document in zip(matrix, documents, strict=True):
        expected = []
        for term in terms:
            count, df = document.count(term), sum(term in other for other in documents)
            tf = (1 + math.log(count) if count else 0) if sublinear else count
            expected.append(tf * (math.log((1 + 3) / (1 + df)) + 1))
        np.testing.assert_allclose(row, np.array(expected) / np.linalg.norm(expected), rtol=1e-5)


def test_terms_in_too_few_articles_are_ignored():
    _, terms = text.tfidf(ARTICLES, TextConfig(min_df=2))
    assert terms == ["blue", "flower", "petal", "red"]
    with pytest.raises(UserError, match=r"no term occurs in 4 articles .*lower text\.min_df"):
        text.tfidf(ARTICLES, TextConfig(min_df=4))


def test_emphasised_terms_weigh_more(tmp_path):
    (tmp_path / "terms.txt").write_text("# a comment: blue\nFlowers reds\n")
    plain, terms = text.tfidf(ARTICLES, TextConfig())
    emphasised, _ = text.tfidf(ARTICLES, TextConfig(emphasised=str(tmp_path / "terms.txt"), emphasis=3.0))
    factor = np.array([3 if term in ("flower", "red") else 1 for term in terms])
    expected = plain * factor
    np.testing.assert_allclose(emphasised, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-5)
    with pytest.raises(UserError, match="cannot be read"):
        text.read_terms(tmp_path / "none.txt")
    (tmp_path / "terms.txt").write_text("# nothing\n")
    with pytest.raises(UserError, match="contains no terms"):
        text.read_terms(tmp_path / "terms.txt")


def test_a_given_vocabulary_keeps_its_order():
    matrix, terms = text.tfidf(ARTICLES, TextConfig(min_df=2), vocabulary=["shrub", "red", "orchid"])
    assert terms == ["shrub", "red", "orchid"] and matrix.shape == (3, 3) and not matrix[:, 2].any()


def test_lsa_is_the_best_low_rank_approximation_of_inner_products():
    matrix = np.random.default_rng(0).random((8, 20)).astype(np.float32)
    reduced = text.reduce(matrix, 3)
    left, values, _ = np.linalg.svd(matrix)
    best = (left[:, :3] * values[:3] ** 2) @ left[:, :3].T  # Eckart and Young
    lengths = np.sqrt(np.diag(best))
    np.testing.assert_allclose(reduced @ reduced.T, best / np.outer(lengths, lengths), rtol=1e-4, atol=1e-5)
    assert np.array_equal(reduced, text.reduce(matrix, 3))
    with pytest.raises(UserError, match=r"text\.components is 8"):
        text.reduce(matrix, 8)


def test_centred_texts_subtract_the_mean_of_all_classes():
    texts = ClassTexts(np.arange(3), ["a", "b", "c"], articles=ARTICLES)
    plain, _ = text.vectors(texts, TextConfig(min_df=1))
    centred, _ = text.vectors(texts, TextConfig(min_df=1, centred=True))
    away = plain - plain.mean(0)
    np.testing.assert_allclose(centred, away / np.linalg.norm(away, axis=1, keepdims=True), rtol=1e-4, atol=1e-6)
    reduced, _ = text.vectors(texts, TextConfig(min_df=1, centred=True, components=2))
    np.testing.assert_allclose(reduced @ reduced.T, centred @ centred.T, rtol=1e-3, atol=1e-5)  # three points lie in a plane


def test_similarities_are_those_to_the_nearest_seen_classes():
    texts = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    similarities = text.similarities(texts, 5, 2)
    for row, own in zip(similarities, texts, strict=True):
        away = [own - texts[:5].mean(0), *(texts[:5] - texts[:5].mean(0))]
        cosines = [away[0] @ other / np.linalg.norm(away[0]) / np.linalg.norm(other) for other in away[1:]]
        best = np.argsort(cosines)[::-1][:2]
        expected = [cosines[k] if k in best else 0 for k in range(5)]
        np.testing.assert_allclose(row, np.clip(expected, 0, None) / np.clip(expected, 0, None).sum(), rtol=1e-4, atol=1e-5)
    assert (similarities[:5].argmax(1) == np.arange(5)).all()  # a seen class is most similar to itself
    conditions = text.conditions(texts, 5, 2, 3.0)
    np.testing.assert_allclose(np.linalg.norm(conditions, axis=1), 3, rtol=1e-5)
    assert conditions.shape == (7, 5) and text.conditions(texts, 5, None, 1.0) is not conditions


def test_the_command_writes_vectors(tmp_path):
    articles = support.articles(tmp_path / "articles.jsonl")
    message = text.run(Text(str(articles), str(tmp_path / "texts.npz"), TextConfig(min_df=1)))
    assert message.endswith("texts.npz: 10 classes, 13 columns")  # 12 words and `bird`
    loaded = text.read(tmp_path / "texts.npz")
    assert loaded.ids.tolist() == list(range(1, 11)) and loaded.names[9] == "bird 10"
    with np.load(tmp_path / "texts.npz") as opened:
        assert set(opened.files) == {"texts", "classes", "class_names", "terms"} and "spot" in opened["terms"]
    with pytest.raises(UserError, match="already contains vectors"):
        text.run(Text(str(tmp_path / "texts.npz"), str(tmp_path / "x.npz")))


def test_precomputed_vectors_get_length_1_unless_faithful():
    texts = ClassTexts(np.array([1, 2]), ["a", "b"], vectors=np.array([[3, 4], [0, 2]], np.float32))
    assert text.vectors(texts, TextConfig())[0].tolist() == [[np.float32(0.6), np.float32(0.8)], [0, 1]]
    assert text.vectors(texts, TextConfig(), faithful=True)[0].tolist() == [[3, 4], [0, 2]]
    with pytest.raises(UserError, match=r"text\.encoder needs articles"):
        text.vectors(texts, TextConfig(encoder="x"))


def test_a_class_without_common_terms():
    texts = ClassTexts(np.arange(1, 5), list("abcd"), articles=[*ARTICLES, "unheard"])
    with pytest.raises(UserError, match=r"class 4 \(d\) has no term in the vocabulary; write more"):
        text.vectors(texts, TextConfig())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("not json", "line 2: write"),
        ('{"class_id": 3}', "line 2: .*KeyError: 'text'"),
        ('{"class_id": 1e400, "text": "a"}', "line 2: .*infinity"),
        ('{"class_id": NaN, "text": "a"}', "line 2: .*NaN"),
        ('{"class_id": 3.5, "text": "a"}', "line 2: .*not a whole number"),
        ('{"class_id": 99999999999999999999, "text": "a"}', "line 2: .*not a whole number"),
        ('{"class_id": 3, "text": null}', "line 2: .*the text is no text"),
        ("[" * 5000, "line 2: .*recursion"),
        ('{"class_id": "x", "text": "a"}', "line 2: "),
        ("[1]", "line 2: "),
        ('{"class_id": 1, "text": "again"}', "class 1 has two articles"),
    ],
)
def test_invalid_articles(tmp_path, line, words):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"class_id": 1, "name": "a", "text": "red"}) + "\n" + line + "\n")
    with pytest.raises(UserError, match=words) as caught:
        text.read(file)
    assert "\n" not in str(caught.value)


def test_no_articles(tmp_path):
    with pytest.raises(UserError, match="cannot be read as articles"):
        text.read(tmp_path / "none.jsonl")
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(UserError, match="contains no article"):
        text.read(tmp_path / "a.jsonl")


def test_a_sentence_encoder_is_appended(tmp_path):
    """A tiny BERT: its last states, averaged over tokens and passages, have the same weight as the TF-IDF."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "petals", "shrub"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(tmp_path)
    texts = ClassTexts(np.arange(3), list("abc"), articles=ARTICLES)
    matrix, names = text.vectors(texts, TextConfig(encoder=str(tmp_path)))
    assert matrix.shape == (3, 4 + 8) and names[-1] == "encoder 7"
    np.testing.assert_allclose((matrix[:, :4] ** 2).sum(1), 0.5, rtol=1e-5)
    np.testing.assert_allclose((matrix[:, 4:] ** 2).sum(1), 0.5, rtol=1e-5)
    # A long article is the mean of its passages.
    passage = " ".join(["red"] * (text.PASSAGE // 2))
    long, short = text.encode([passage + " " + passage, passage], str(tmp_path))
    np.testing.assert_allclose(long, short, rtol=1e-4)
    with pytest.raises(UserError, match=r"text\.encoder .* does not exist"):
        text.encode(ARTICLES, str(tmp_path / "none"))


@support.needs_cub_wiki
def test_our_stems_match_the_original_vocabulary():
    """7,446 of the 7,551 terms of CUB's TF-IDF are stems of these articles. The others come from another tokenization."""
    original = set(text.read_terms(support.CUB_WIKI / "CUB2011" / "CUB_Porter_7551D_TFIDF_term.mat"))
    articles = text.read(support.CUB_WIKI / "articles.jsonl").articles
    ours = {stem for article in articles for stem in text.stems(article)}
    assert len(original) == 7551 and len(original & ours) > 7000, len(original & ours)
