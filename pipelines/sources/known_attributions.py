"""Titles, licences and citations of datasets that come by name. A dataset whose licence nobody stated is not here."""

from pipelines.dataset.attribution import Attribution

MNIST = Attribution(  # keras.io/api/datasets/mnist states the licence for the holders of the copyright
    title="MNIST",
    licence="CC-BY-SA-3.0",
    citation="Y. LeCun, L. Bottou, Y. Bengio, P. Haffner. Gradient-based learning applied to document recognition. "
    "Proceedings of the IEEE 86(11), 1998.",
)
TORCHVISION = {
    "MNIST": MNIST,
    "FashionMNIST": Attribution(  # github.com/zalandoresearch/fashion-mnist
        title="Fashion-MNIST",
        licence="MIT",
        citation="H. Xiao, K. Rasul, R. Vollgraf. Fashion-MNIST: a novel image dataset for benchmarking machine "
        "learning algorithms. arXiv:1708.07747, 2017.",
    ),
    "KMNIST": Attribution(  # github.com/rois-codh/kmnist
        title="Kuzushiji-MNIST",
        licence="CC-BY-SA-4.0",
        citation="T. Clanuwat, M. Bober-Irizar, A. Kitamoto, A. Lamb, K. Yamamoto, D. Ha. Deep learning for classical "
        "Japanese literature. arXiv:1812.01718, 2018.",
    ),
    "CLEVRClassification": Attribution(  # cs.stanford.edu/people/jcjohns/clevr
        title="CLEVR",
        licence="CC-BY-4.0",
        citation="J. Johnson, B. Hariharan, L. van der Maaten, L. Fei-Fei, C. L. Zitnick, R. Girshick. CLEVR: a "
        "diagnostic dataset for compositional language and elementary visual reasoning. CVPR 2017.",
    ),
}
