"""The paper's synthetic study of GPO's coefficient generator (supplement 2.3, Table 6).

    python main.py --config=configs/gpo_synthetic.py --workdir=runs/gpo_synthetic

Four generators learn five pooling patterns each from random sets. The RMSE of their
coefficients is printed beside the paper's and written to table6.json in --workdir.
Published for GPO, sets of 20 to 100: average 0, max 0.005, 10-max
0.010, mean of the top half 0.006, linear 0; measured: docs/results.md. The paper gives
no recipe; this one is the same for all four.
"""

from configs import common


def get_config():
    c = common.base()
    c.task = "gpo_synthetic"
    c.batch_size = 16  # random sets a step
    c.max_steps = 3000
    c.optimizer.learning_rate = 2e-3  # at the start; falls to 0 along a cosine
    return c
