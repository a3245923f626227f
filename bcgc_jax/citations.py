"""The works behind the methods, as BibTeX."""

from bcgc_jax.balancing.scheme_names import about

_WORKS = {
    "wang2021": """@inproceedings{wang2021,
  author = {Wang, Qi and Cui, Ying and Li, Chenglin and Zou, Junni and Xiong, Hongkai},
  title = {Optimization-based Block Coordinate Gradient Coding},
  booktitle = {IEEE Global Communications Conference (GLOBECOM)}, year = {2021},
  doi = {10.1109/GLOBECOM46510.2021.9685858},
}""",
    "wang2023": """@article{wang2023,
  author = {Wang, Qi and Cui, Ying and Li, Chenglin and Zou, Junni and Xiong, Hongkai},
  title = {Optimization-Based Block Coordinate Gradient Coding for Mitigating Partial
    Stragglers in
           Distributed Learning},
  journal = {IEEE Transactions on Signal Processing}, year = {2023},
  eprint = {2206.02450}, archivePrefix = {arXiv},
}""",
    "tandon2017": """@inproceedings{tandon2017,
  author = {Tandon, Rashish and Lei, Qi and Dimakis, Alexandros G. and Karampatziakis,
    Nikos},
  title = {Gradient Coding: Avoiding Stragglers in Distributed Learning},
  booktitle = {International Conference on Machine Learning (ICML)}, year = {2017},
}""",
    "ferdinand2018": """@inproceedings{ferdinand2018,
  author = {Ferdinand, Nuwan and Draper, Stark C.},
  title = {Hierarchical Coded Computation},
  booktitle = {IEEE International Symposium on Information Theory (ISIT)}, year =
    {2018},
}""",
    "ozfatura2019": """@inproceedings{ozfatura2019,
  author = {Ozfatura, Emre and G{\\"u}nd{\\"u}z, Deniz and Ulukus, Sennur},
  title = {Gradient Coding with Clustering and Multi-message Communication},
  booktitle = {IEEE Data Science Workshop}, year = {2019},
}""",
    "amiri2019": """@article{amiri2019,
  author = {Amiri, Mohammad Mohammadi and G{\\"u}nd{\\"u}z, Deniz},
  title = {Computation Scheduling for Distributed Machine Learning with Straggling
    Workers},
  journal = {IEEE Transactions on Signal Processing}, volume = {67}, number = {24},
  pages = {6270--6284},
  year = {2019}, eprint = {1810.09992}, archivePrefix = {arXiv},
}""",
    "attia2017": """@misc{attia2017,
  author = {Attia, Mohamed A. and Tandon, Ravi},
  title = {Combating Computational Heterogeneity in Large-Scale Distributed Computing
    via Work
    Exchange},
  year = {2017}, eprint = {1711.08452}, archivePrefix = {arXiv},
}""",
    "wang2016": """@article{wang2016,
  author = {Wang, Weina and Zhu, Kai and Ying, Lei and Tan, Jian and Zhang, Li},
  title = {{MapTask} Scheduling in {MapReduce} With Data Locality: Throughput and
    Heavy-Traffic
    Optimality},
  journal = {IEEE/ACM Transactions on Networking}, volume = {24}, number = {1}, year =
    {2016},
}""",
    "hummel1992": """@article{hummel1992,
  author = {Hummel, Susan Flynn and Schonberg, Edith and Flynn, Lawrence E.},
  title = {Factoring: A Method for Scheduling Parallel Loops},
  journal = {Communications of the ACM}, volume = {35}, number = {8}, year = {1992},
}""",
    "harlap2016": """@inproceedings{harlap2016,
  author = {Harlap, Aaron and Cui, Henggang and Dai, Wei and Wei, Jinliang and Ganger,
    Gregory R.
    and Gibbons, Phillip B. and Gibson, Garth A. and Xing, Eric P.},
  title = {Addressing the Straggler Problem for Iterative Convergent Parallel {ML}},
  booktitle = {ACM Symposium on Cloud Computing (SoCC)}, year = {2016},
  doi = {10.1145/2987550.2987554},
}""",
    "polychronopoulos1987": """@article{polychronopoulos1987,
  author = {Polychronopoulos, Constantine D. and Kuck, David J.},
  title = {Guided Self-Scheduling: A Practical Scheduling Scheme for Parallel
    Supercomputers},
  journal = {IEEE Transactions on Computers}, year = {1987},
}""",
    "copeland1989": """@inproceedings{copeland1989,
  author = {Copeland, George P. and Keller, Tom W.},
  title = {A Comparison of High-Availability Media Recovery Techniques},
  booktitle = {ACM SIGMOD International Conference on Management of Data}, year =
    {1989},
  pages = {98--109}, doi = {10.1145/67544.66936},
}""",
    "chen2016": """@misc{chen2016,
  author = {Chen, Jianmin and Pan, Xinghao and Monga, Rajat and Bengio, Samy and
    Jozefowicz, Rafal},
  title = {Revisiting Distributed Synchronous {SGD}},
  year = {2016}, eprint = {1604.00981}, archivePrefix = {arXiv},
}""",
    "giladi2023": """@inproceedings{giladi2023,
  author = {Giladi, Niv and Gottlieb, Shahar and Shkolnik, Moran and Karnieli, Asaf and
    Banner, Ron
    and Hoffer, Elad and Levy, Kfir Yehuda and Soudry, Daniel},
  title = {{DropCompute}: Simple and More Robust Distributed Synchronous Training via
    Compute
    Variance Reduction},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)}, year =
    {2023},
  eprint = {2306.10598}, archivePrefix = {arXiv},
}""",
    "lewis2013": """@article{lewis2013,
  author = {Lewis, Adrian S. and Overton, Michael L.},
  title = {Nonsmooth Optimization via Quasi-{Newton} Methods},
  journal = {Mathematical Programming}, volume = {141}, year = {2013},
}""",
    "birgin2000": """@article{birgin2000,
  author = {Birgin, Ernesto G. and Mart{\\'i}nez, Jos{\\'e} Mario and Raydan, Marcos},
  title = {Nonmonotone Spectral Projected Gradient Methods on Convex Sets},
  journal = {SIAM Journal on Optimization}, volume = {10}, number = {4}, year = {2000},
}""",
    "shamir2013": """@inproceedings{shamir2013,
  author = {Shamir, Ohad and Zhang, Tong},
  title = {Stochastic Gradient Descent for Non-smooth Optimization: Convergence Results
    and Optimal
    Averaging Schemes},
  booktitle = {International Conference on Machine Learning (ICML)}, year = {2013},
}""",
    "mak1999": """@article{mak1999,
  author = {Mak, Wai-Kei and Morton, David P. and Wood, R. Kevin},
  title = {{Monte Carlo} Bounding Techniques for Determining Solution Quality in
    Stochastic
    Programs},
  journal = {Operations Research Letters}, volume = {24}, year = {1999},
}""",
}


def bibliography(method: str, *, sampled_bound: bool) -> str:
    """BibTeX for `method` and a bound by draws; empty for a scheme of one's own."""
    keys = list(about(method).works)
    if sampled_bound:
        keys.append("mak1999")
    return "\n\n".join(_WORKS[key] for key in keys)
