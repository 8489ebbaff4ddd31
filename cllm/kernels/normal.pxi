# The tail of the normal distribution, which the exact gelu is made of.
#
#     Phi(-a) = erfc(a / sqrt(2)) / 2 = exp(-a^2/2) t Q(u),   t = 1 / (1 + a/4),   u = 2t - 1,   a >= 0
#
# exp(x^2) erfc(x) times (1 + 2x) is smooth in (x - k) / (x + k) from 0 to infinity: the form is that of Shepherd and
# Laframboise (1981, Math. Comp. 36, 249). Here t stands for the other factor and for the variable, so that there is one
# division. Q is fitted to exp(a^2/2) Phi(-a) / t for the least relative error (least squares on Chebyshev points,
# reweighted, in 50 digits) where the exponential is not zero: a <= 13.4 with ten coefficients in float32, error 7.5e-9
# (2.1e-8 with rounded coefficients), a <= 38.5 with 22 in float64, error 7.7e-17 (2.8e-16). No side cancels: the
# upper tail is small by itself, and 1 - Phi(-a) is at least a half. The exponential is that of a rounded argument: the
# relative error grows as a^2/2 units of the last place.


cdef inline vec normal_tail(vec a, vec *density) noexcept nogil:
    """Phi(-a) for a >= 0, and exp(-a^2/2) / sqrt(2 pi) into `density`."""
    cdef vec one = splat(&a, 1.0), e = vexp2(a * a * splat(&a, -0.5 * M_LOG2E)), t, u, q
    t = one / fma(a, splat(&a, 0.25), one)
    u = (t + t) - one
    if vec is vf32:
        q = splat(&a, 3.1597435736330226e-05)
        q = fma(q, u, splat(&a, 4.7921792429406196e-05))
        q = fma(q, u, splat(&a, -0.0003937326546292752))
        q = fma(q, u, splat(&a, -0.0008794630994088948))
        q = fma(q, u, splat(&a, 0.0018821910489350557))
        q = fma(q, u, splat(&a, 0.015101107768714428))
        q = fma(q, u, splat(&a, 0.046630725264549255))
        q = fma(q, u, splat(&a, 0.09678421914577484))
        q = fma(q, u, splat(&a, 0.151974156498909))
        q = fma(q, u, splat(&a, 0.18882128596305847))
    else:
        q = splat(&a, -3.9834770044120694e-10)
        q = fma(q, u, splat(&a, 2.686314688869032e-09))
        q = fma(q, u, splat(&a, -2.2592413619680827e-09))
        q = fma(q, u, splat(&a, -1.7979618780192337e-08))
        q = fma(q, u, splat(&a, 3.638728241368412e-08))
        q = fma(q, u, splat(&a, 6.504350657154838e-08))
        q = fma(q, u, splat(&a, -2.5302061483826184e-07))
        q = fma(q, u, splat(&a, -1.5585335972741301e-07))
        q = fma(q, u, splat(&a, 1.4786672173092527e-06))
        q = fma(q, u, splat(&a, 1.7861183381507367e-07))
        q = fma(q, u, splat(&a, -8.785678456588835e-06))
        q = fma(q, u, splat(&a, -4.769350692784948e-07))
        q = fma(q, u, splat(&a, 5.7773624360638485e-05))
        q = fma(q, u, splat(&a, 3.3336058415461386e-05))
        q = fma(q, u, splat(&a, -0.000407704599907366))
        q = fma(q, u, splat(&a, -0.0008699230900047789))
        q = fma(q, u, splat(&a, 0.0018850472406346157))
        q = fma(q, u, splat(&a, 0.015099143722640084))
        q = fma(q, u, splat(&a, 0.046630464489948675))
        q = fma(q, u, splat(&a, 0.09678435018555562))
        q = fma(q, u, splat(&a, 0.1519741604929727))
        q = fma(q, u, splat(&a, 0.18882128260393788))
    density[0] = e * splat(&a, 0.3989422804014327)
    return e * (t * q)
