"""The works behind the methods, as BibTeX."""

_WORKS = {
    "wang2021": """@inproceedings{wang2021,
  author = {Wang, Qi and Cui, Ying and Li, Chenglin and Zou, Junni and Xiong, Hongkai},
  title = {Optimization-based Block Coordinate Gradient Coding},
  booktitle = {IEEE Global Communications Conference (GLOBECOM)}, year = {2021},
  doi = {10.1109/GLOBECOM46510.2021.9685858},
}""",
    "wang2023": """@article{wang2023,
  author = {Wang, Qi and Cui, Ying and Li, Chenglin and Zou, Junni and Xiong, Hongkai},
  title = {Optimization-Based Block Coordinate Gradient Coding for Mitigating Partial Stragglers in
           Distributed Learning},
  journal = {IEEE Transactions on Signal Processing}, year = {2023},
}""",
    "tandon2017": """@inproceedings{tandon2017,
  author = {Tandon, Rashish and Lei, Qi and Dimakis, Alexandros G. and Karampatziakis, Nikos},
  title = {Gradient Coding: Avoiding Stragglers in Distributed Learning},
  booktitle = {International Conference on Machine Learning (ICML)}, year = {2017},
}""",
    "ferdinand2018": """@inproceedings{ferdinand2018,
  author = {Ferdinand, Nuwan and Draper, Stark C.},
  title = {Hierarchical Coded Computation},
  booktitle = {IEEE International Symposium on Information Theory (ISIT)}, year = {2018},
}""",
    "ozfatura2019": """@inproceedings{ozfatura2019,
  author = {Ozfatura, Emre and G{\\"u}nd{\\"u}z, Deniz and Ulukus, Sennur},
  title = {Gradient Coding with Clustering and Multi-message Communication},
  booktitle = {IEEE Data Science Workshop}, year = {2019},
}""",
    "birgin2000": """@article{birgin2000,
  author = {Birgin, Ernesto G. and Mart{\\'i}nez, Jos{\\'e} Mario and Raydan, Marcos},
  title = {Nonmonotone Spectral Projected Gradient Methods on Convex Sets},
  journal = {SIAM Journal on Optimization}, volume = {10}, number = {4}, year = {2000},
}""",
    "shamir2013": """@inproceedings{shamir2013,
  author = {Shamir, Ohad and Zhang, Tong},
  title = {Stochastic Gradient Descent for Non-smooth Optimization: Convergence Results and Optimal Averaging
           Schemes},
  booktitle = {International Conference on Machine Learning (ICML)}, year = {2013},
}""",
    "mak1999": """@article{mak1999,
  author = {Mak, Wai-Kei and Morton, David P. and Wood, R. Kevin},
  title = {{Monte Carlo} Bounding Techniques for Determining Solution Quality in Stochastic Programs},
  journal = {Operations Research Letters}, volume = {24}, year = {1999},
}""",
}
# Beside the paper itself, which all methods rest on.
_BEHIND = {
    "deadline": ("wang2023", "birgin2000"),
    "nested": ("tandon2017", "ozfatura2019", "birgin2000"),
    "subgradient": ("shamir2013",),
    **dict.fromkeys(("uncoded", "single_block", "tandon", "tandon_partial"), ("tandon2017",)),
    **dict.fromkeys(("ferdinand", "ferdinand_full", "ferdinand_half"), ("ferdinand2018",)),
}


def bibliography(method: str, *, sampled_bound: bool) -> str:
    """BibTeX of what `method` rests on, and, for a bound by draws, of that."""
    keys = ["wang2021", *_BEHIND.get(method.partition(":")[0], ())]
    if sampled_bound:
        keys.append("mak1999")
    return "\n\n".join(_WORKS[key] for key in keys)
