"""Radiomic features: their names and order, in pyradiomics' own spelling, and `extract`.

    from kacl_jax.radiomics import FEATURE_NAMES, extract

This file imports neither jax nor pyradiomics until `extract` is asked for: worker processes pass through it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kacl_jax.radiomics.extraction import Extraction, extract

__all__ = ["FAMILIES", "FEATURE_NAMES", "LOG_COLUMNS", "Extraction", "extract"]

FAMILIES: tuple[str, ...] = ("shape2D", "firstorder", "glcm", "glrlm", "glszm", "gldm", "ngtdm")

_NAMES: dict[str, str] = {
    "shape2D": """
        Elongation MajorAxisLength MaximumDiameter MeshSurface MinorAxisLength Perimeter
        PerimeterSurfaceRatio PixelSurface Sphericity
    """,
    "firstorder": """
        10Percentile 90Percentile Energy Entropy InterquartileRange Kurtosis Maximum
        MeanAbsoluteDeviation Mean Median Minimum Range RobustMeanAbsoluteDeviation
        RootMeanSquared Skewness TotalEnergy Uniformity Variance
    """,
    "glcm": """
        Autocorrelation ClusterProminence ClusterShade ClusterTendency Contrast Correlation
        DifferenceAverage DifferenceEntropy DifferenceVariance Id Idm Idmn Idn Imc1 Imc2
        InverseVariance JointAverage JointEnergy JointEntropy MCC MaximumProbability SumAverage
        SumEntropy SumSquares
    """,
    "glrlm": """
        GrayLevelNonUniformity GrayLevelNonUniformityNormalized GrayLevelVariance
        HighGrayLevelRunEmphasis LongRunEmphasis LongRunHighGrayLevelEmphasis
        LongRunLowGrayLevelEmphasis LowGrayLevelRunEmphasis RunEntropy RunLengthNonUniformity
        RunLengthNonUniformityNormalized RunPercentage RunVariance ShortRunEmphasis
        ShortRunHighGrayLevelEmphasis ShortRunLowGrayLevelEmphasis
    """,
    "glszm": """
        GrayLevelNonUniformity GrayLevelNonUniformityNormalized GrayLevelVariance
        HighGrayLevelZoneEmphasis LargeAreaEmphasis LargeAreaHighGrayLevelEmphasis
        LargeAreaLowGrayLevelEmphasis LowGrayLevelZoneEmphasis SizeZoneNonUniformity
        SizeZoneNonUniformityNormalized SmallAreaEmphasis SmallAreaHighGrayLevelEmphasis
        SmallAreaLowGrayLevelEmphasis ZoneEntropy ZonePercentage ZoneVariance
    """,
    "gldm": """
        DependenceEntropy DependenceNonUniformity DependenceNonUniformityNormalized
        DependenceVariance GrayLevelNonUniformity GrayLevelVariance HighGrayLevelEmphasis
        LargeDependenceEmphasis LargeDependenceHighGrayLevelEmphasis
        LargeDependenceLowGrayLevelEmphasis LowGrayLevelEmphasis SmallDependenceEmphasis
        SmallDependenceHighGrayLevelEmphasis SmallDependenceLowGrayLevelEmphasis
    """,
    "ngtdm": """
        Busyness Coarseness Complexity Contrast Strength
    """,
}

FEATURE_NAMES: tuple[str, ...] = tuple(
    f"original_{family}_{name}" for family in FAMILIES for name in _NAMES[family].split()
)

# Columns that get a signed log1p before the z-score. Decided once, on 240 real regions (truth boxes
# and CAM-like blobs at 128, 224 and 512 px): the scale-like ones, whose 99th percentile is over
# four times the median, with a median above 1 (log1p bends nothing below) and less skew after it.
# firstorder_Minimum, which also fits, stays linear beside the other grey levels. Coarseness is
# here although it is small, for pyradiomics gives it 10^6 where a region is one grey level.
_LOG: dict[str, str] = {
    "shape2D": """
        MajorAxisLength MaximumDiameter MeshSurface MinorAxisLength Perimeter PixelSurface
    """,
    "firstorder": "Energy TotalEnergy Variance",
    "glcm": "ClusterProminence ClusterShade ClusterTendency SumSquares",
    "glrlm": """
        GrayLevelNonUniformity LongRunEmphasis LongRunHighGrayLevelEmphasis
        LongRunLowGrayLevelEmphasis RunLengthNonUniformity RunVariance
    """,
    "glszm": """
        GrayLevelNonUniformity LargeAreaEmphasis LargeAreaHighGrayLevelEmphasis
        LargeAreaLowGrayLevelEmphasis SizeZoneNonUniformity SmallAreaHighGrayLevelEmphasis
        ZoneVariance
    """,
    "gldm": """
        DependenceNonUniformity GrayLevelNonUniformity GrayLevelVariance
        LargeDependenceLowGrayLevelEmphasis
    """,
    "ngtdm": "Busyness Coarseness",
}

LOG_COLUMNS: tuple[bool, ...] = tuple(
    name in _LOG[family].split() for family in FAMILIES for name in _NAMES[family].split()
)


def __getattr__(name: str) -> Any:
    if name in ("Extraction", "extract"):
        from kacl_jax.radiomics import extraction

        return getattr(extraction, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
