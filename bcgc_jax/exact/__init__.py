"""Mathematics that knows no problem: crossings, quadrature, order statistics."""
