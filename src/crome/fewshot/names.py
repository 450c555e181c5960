"""The classifiers by name, and the file of each: what a saved classifier may name."""

CLASSIFIERS = {
    "APEClassifier": "methods.ape",
    "GDAClassifier": "methods.gda",
    "LinearProbeClassifier": "methods.linear_probe",
    "TipAdapterClassifier": "methods.tip_adapter",
    "XMAdapterClassifier": "methods.xmadapter",
    "ZeroShotClassifier": "methods.zero_shot",
}
