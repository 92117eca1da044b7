//! PCI Express functions, configuration space, BARs, MSI-X and the bus.
