"""Every number of the paper that is used here, once: what it trains with and what it reports.

Percent for AUC, specificity, recall and F1; ``millions`` of parameters, as the paper counts them
(docs/decisions.md).
"""

FRAMES = 30
IMAGE_SIZE = 64  # pixels
BATCH_SIZE = 16
TOTAL_STEPS = 8000
# Models with the temporal encoder (BERT) train with AdamW, the others with SGD.
ADAMW_LEARNING_RATE = 1e-4
SGD_LEARNING_RATE = 1e-2
MASK_SIZE = 16  # the best row of Table 3
MASK_LOSS_WEIGHT = 0.05  # lambda, the best row of Table 4

TABLE_1 = {
    "vivit": {"auc": 58.54, "specificity": 67.44, "recall": 45.45, "f1": 43.48, "millions": 41.98},
    "timesformer": {
        "auc": 59.20,
        "specificity": 65.12,
        "recall": 52.27,
        "f1": 47.42,
        "millions": 76.54,
    },
    "c3d": {"auc": 63.31, "specificity": 59.30, "recall": 56.82, "f1": 48.07, "millions": 63.32},
    "i3d": {"auc": 57.80, "specificity": 62.79, "recall": 54.54, "f1": 48.00, "millions": 12.55},
    "slowfast": {
        "auc": 64.32,
        "specificity": 70.93,
        "recall": 54.54,
        "f1": 51.61,
        "millions": 33.56,
    },
    "p3d": {"auc": 63.74, "specificity": 73.26, "recall": 50.00, "f1": 49.44, "millions": 65.68},
    "mvo_net": {
        "auc": 72.70,
        "specificity": 75.58,
        "recall": 56.82,
        "f1": 55.56,
        "millions": 43.72,
    },
}
# The method's own row stands in every table.
_METHOD = {key: TABLE_1["mvo_net"][key] for key in ("auc", "millions")}

# Variant of the network.
TABLE_2 = {
    "backbone": {"auc": 64.45, "millions": 31.50},
    "bert": {"auc": 65.45, "millions": 37.86},
    "cgmr": {"auc": 67.97, "millions": 37.56},
    "full": _METHOD,
}
# Side of the coarse mask: AUC; IMAGE_SIZE is the mask as it was drawn.
TABLE_3 = {4: 68.68, MASK_SIZE: _METHOD["auc"], 32: 67.02, IMAGE_SIZE: 62.23}
# lambda: AUC.
TABLE_4 = {0.01: 67.79, MASK_LOSS_WEIGHT: _METHOD["auc"], 0.1: 70.30}
