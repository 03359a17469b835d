def figures_of(x): return {}
