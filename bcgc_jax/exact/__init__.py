"""Mathematics that knows no problem: crossing probabilities, quadrature, order statistics,
linear algebra."""
