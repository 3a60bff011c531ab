"""Radiomic features: their names and order, spelled as in pyradiomics, and `extract`.

    from kacl_jax.radiomics import FEATURE_NAMES, extract

This file imports jax and pyradiomics only when `extract` is first accessed, because worker processes import it too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kacl_jax.radiomics.extraction import Extraction, extract

__all__ = ["FAMILIES", "FEATURE_NAMES", "LOG_COLUMNS", "Extraction", "extract"]

FAMILIES: tuple[str, ...] = ("shape2D", "firstorder", "glcm", "glrlm", "glszm", "gldm", "ngtdm")

_NAMES_BY_FAMILY: dict[str, str] = {
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
    f"original_{family}_{name}" for family in FAMILIES for name in _NAMES_BY_FAMILY[family].split()
)

# Features that get a signed log1p before the z-score, chosen on 240 real regions (truth boxes and
# CAM-like blobs at 128, 224 and 512 px). They behave like sizes: their 99th percentile is more than
# four times the median, their median is above 1 (log1p is almost linear below), and log1p makes
# them less skewed. firstorder_Minimum also meets these conditions, but stays linear like the other
# grey values. Coarseness is included although it is small, because pyradiomics sets it to 10^6
# where a region has only one grey level.
_LOG_NAMES_BY_FAMILY: dict[str, str] = {
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
    name in _LOG_NAMES_BY_FAMILY[family].split()
    for family in FAMILIES
    for name in _NAMES_BY_FAMILY[family].split()
)


def __getattr__(name: str) -> Any:
    if name in ("Extraction", "extract"):
        from kacl_jax.radiomics import extraction

        return getattr(extraction, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
