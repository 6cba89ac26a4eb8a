"""The data sets thrifty knows: their files, their checksums, where they come from, and how to cite them."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class DataFile:
    """One file of a data set.

    `path` is relative to the data folder. `sha256` and `num_bytes` are those of the content: of a `.gz`, what is
    packed in it, since packing the same content twice need not give the same bytes. `origin` is the public address
    of the file, None where there is none; `convert` turns what is found there, unpacked, into the content.
    """

    path: str
    sha256: str
    num_bytes: int
    origin: str | None = None
    convert: Callable[[bytes], bytes] = bytes


@dataclass(frozen=True)
class DataSet:
    """A data set by name: its files, what it is, where it comes from, and how to cite it."""

    name: str
    files: tuple[DataFile, ...]
    about: str
    source: str
    citation: str

    @property
    def is_text(self) -> bool:
        """Whether `text` can load it. A set without files is one that Python brings along, which is text."""
        return all(file.path.startswith("text/") for file in self.files)

    @property
    def has_origin(self) -> bool:
        """Whether `get` can download all of it."""
        return all(file.origin is not None for file in self.files)


def _signed_of_ratings(content: bytes) -> bytes:
    """Turn `source,target,rating,time` into `source,target,sign,weight,time`; the weight is the rating."""
    lines = [b"source,target,sign,weight,time"]
    for row in content.splitlines():
        source, target, rating, time = row.split(b",")
        lines.append(b",".join((source, target, b"1" if int(rating) > 0 else b"-1", rating, time)))
    return b"\n".join(lines) + b"\n"


def _signed_of_edges(content: bytes) -> bytes:
    """Turn lines of source, target and sign, parted by commas or tabs, into a table with a header; `#` is a remark."""
    rows = [row.replace(b"\t", b",") for row in content.splitlines() if not row.startswith(b"#")]
    return b"\n".join([b"source,target,sign", *rows]) + b"\n"


_EXAMPLES = "https://raw.githubusercontent.com/pytorch/examples"
_SNAP = "https://snap.stanford.edu/data"
_SGA = "https://raw.githubusercontent.com/Alex-Zeyu/SGA/ab920e9d62cdf572c13a30263c6e2b3664341d3d/networks"
_MERITY = "Merity et al., Pointer Sentinel Mixture Models, 2016, arXiv:1609.07843; CC BY-SA"
_KUMAR = "Kumar et al., Edge Weight Prediction in Weighted Signed Networks, ICDM 2016; REV2, WSDM 2018"
_LESKOVEC = "Leskovec, Huttenlocher, Kleinberg, Signed Networks in Social Media, CHI 2010"
_KRIZHEVSKY = "Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009"

WIKITEXT_2_TEST = DataSet(
    "wikitext-2-test",
    (
        DataFile(
            "text/wikitext-2-test.txt",
            "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
            1_256_449,
            f"{_EXAMPLES}/cada773327ba94a5970e0d57c17c847d69dbbb8f/word_language_model/data/wikitext-2/test.txt",
        ),
    ),
    "Wikipedia articles, tokenised (`<unk>`, ` @-@ `); for measuring only, and not comparable with raw perplexities",
    "github.com/pytorch/examples",
    _MERITY,
)
PYTHON_TOPICS = DataSet(
    "python-topics",
    (),
    "the help texts of Python, English prose that every Python brings along; differs a little between versions",
    "pydoc_data.topics",
    "Python Software Foundation License",
)
SETS: dict[str, DataSet] = {
    data_set.name: data_set
    for data_set in (
        PYTHON_TOPICS,
        WIKITEXT_2_TEST,
        DataSet(
            "wikitext-2-valid",
            (
                DataFile(
                    "text/wikitext-2-valid.txt",
                    "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
                    1_121_681,
                    f"{_EXAMPLES}/37ce9402ff0cae48d764d7788810fd2ed8238b25/word_language_model/data/wikitext-2/valid.txt",
                ),
            ),
            "as wikitext-2-test, the validation split",
            "github.com/pytorch/examples",
            _MERITY,
        ),
        DataSet(
            "books",
            (
                DataFile(
                    "text/books.txt.gz",
                    "30c1c57d8c5f75f749f982cf02a6f757354441fcc887fc1e3ec9d39a2351eca6",
                    7_876_247,
                ),
            ),
            "eight public-domain English books, for calibration and training",
            "Project Gutenberg (GITenberg), cleaned and joined",
            "Project Gutenberg; public domain",
        ),
        DataSet(
            "bitcoin-alpha",
            (
                DataFile(
                    "signed/bitcoin-alpha.csv.gz",
                    "50b500ef6b6e3ffb4b1455ced47fe1622ddc09b164b946f4ebe6cac6baec3908",
                    553_070,
                    f"{_SNAP}/soc-sign-bitcoinalpha.csv.gz",
                    _signed_of_ratings,
                ),
            ),
            "signed graph: who trusts whom on Bitcoin Alpha, with ratings and times",
            "snap.stanford.edu",
            _KUMAR,
        ),
        DataSet(
            "bitcoin-otc",
            (
                DataFile(
                    "signed/bitcoin-otc.csv.gz",
                    "6ac9acb21fbb196af633e8094992fce60f1ed152494aacbb1945ce88766c61f9",
                    1_085_958,
                    f"{_SNAP}/soc-sign-bitcoinotc.csv.gz",
                    _signed_of_ratings,
                ),
            ),
            "signed graph: who trusts whom on Bitcoin OTC, with ratings and times",
            "snap.stanford.edu",
            _KUMAR,
        ),
        DataSet(
            "epinions",
            (
                DataFile(
                    "signed/epinions.csv.gz",
                    "3078673629386d4832b27b2beaeb08425f7a1357ba1f7386a1e6133e0388c37d",
                    11_243_034,
                    f"{_SNAP}/soc-sign-epinions.txt.gz",
                    _signed_of_edges,
                ),
            ),
            "signed graph: who trusts whom on Epinions",
            "snap.stanford.edu",
            _LESKOVEC,
        ),
        DataSet(
            "slashdot",
            (
                DataFile(
                    "signed/slashdot.csv.gz",
                    "873757bcf11f959ae6653ef79652e1b6e2aa39d6295039ce941d75fd81f13d31",
                    7_082_828,
                    f"{_SNAP}/soc-sign-Slashdot090221.txt.gz",
                    _signed_of_edges,
                ),
            ),
            "signed graph: friends and foes on Slashdot, February 2009",
            "snap.stanford.edu",
            _LESKOVEC,
        ),
        DataSet(
            "wiki-elec",
            (
                DataFile(
                    "signed/wiki-elec.csv.gz",
                    "f6ed2841e19988cdcde5c8f0cf03415a9b3723d36f7a4a597696edb0bd251097",
                    1_217_975,
                    f"{_SGA}/wiki-elec.csv",
                    _signed_of_edges,
                ),
            ),
            "signed graph: votes for administrators of Wikipedia, the list of SGA",
            "github.com/Alex-Zeyu/SGA",
            _LESKOVEC,
        ),
        DataSet(
            "wiki-rfa",
            (
                DataFile(
                    "signed/wiki-rfa.csv.gz",
                    "db3bd188323c6a5032664a54f8838ef3bb7b52fdc5e213a3a77068876d045f21",
                    1_992_873,
                    f"{_SGA}/wiki-RfA.csv",
                    _signed_of_edges,
                ),
            ),
            "signed graph: requests for adminship on Wikipedia, the list of SGA",
            "github.com/Alex-Zeyu/SGA",
            "West et al., Exploiting Social Network Structure for Person-to-Person Sentiment Analysis, TACL 2014",
        ),
        DataSet(
            "sga-splits",
            (
                DataFile(
                    "signed/sga-splits/bitcoin-alpha.csv.gz",
                    "9871db1570113de518a6e45343647e53baec42e0c9f5e3e2e4aaa59f8d12e91a",
                    240_528,
                ),
                DataFile(
                    "signed/sga-splits/bitcoin-otc.csv.gz",
                    "1de7ba1bbbf7ae0578608d76785cf61e143f5e72003d7688e6f2d6cd7eafb0d8",
                    412_519,
                ),
                DataFile(
                    "signed/sga-splits/epinions.csv.gz",
                    "63e2eaf742b3823b6fe9a6c400eb2b06c16ee6e1964b3b670daaaddaf1b0ed8e",
                    11_327_332,
                ),
                DataFile(
                    "signed/sga-splits/slashdot.csv.gz",
                    "7a6a0795fdccf4fbdfc2fe4a7eab8293459cd6b2a6644aee4d07611899782420",
                    7_099_944,
                ),
                DataFile(
                    "signed/sga-splits/wiki-elec.csv.gz",
                    "2d993a2218fbbd4beaaf04fe6b7316cf0e74da7d5fff205bc28f1b3091823cc2",
                    1_222_339,
                ),
                DataFile(
                    "signed/sga-splits/wiki-rfa.csv.gz",
                    "1ae354ac08cb088039de8d25a484090bd990e24050f907a23c2d63945d81a5d6",
                    1_999_743,
                ),
            ),
            "the five official splits of SGA for each graph: bit k-1 of testmask marks the test edges of split k",
            "github.com/Alex-Zeyu/SGA, its 30 test lists packed into masks",
            "as the graphs, and SGA",
        ),
        DataSet(
            "cifar10",
            (
                DataFile(
                    "cifar10/train.npz",
                    "d2168c6ac464fc6b0739e714c89d2dc21bd0309555d440e206e20e2f69333644",
                    85_227_720,
                ),
                DataFile(
                    "cifar10/test.npz",
                    "d501dd71ba532f4ca45f9e6d15fc285be7d080cc8388113be7bf903f26a96f75",
                    17_059_738,
                ),
            ),
            "60,000 images of 10 classes; 170 of them lossy (JPEG)",
            "public copies on GitHub, packed",
            _KRIZHEVSKY,
        ),
        DataSet(
            "cifar100",
            (
                DataFile(
                    "cifar100/train.npz",
                    "07192262f94af80345e460eb4485c4d11ca0e677c12a0361c9b9fe5fb5776573",
                    87_154_731,
                ),
                DataFile(
                    "cifar100/test.npz",
                    "704c3d3dcda9dd9245a636245906a307f17e5cef01f7835d6424287ad57731b8",
                    17_476_857,
                ),
            ),
            "60,000 images of 100 classes, ordered by class",
            "public copies on GitHub, packed without loss",
            _KRIZHEVSKY,
        ),
    )
}
