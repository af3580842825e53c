"""MultiResPatchSSL: patches of several sizes, SimCLR, and a local search among normal references."""
