//! Lists of sources: key and verdict of the longest-prefix-match maps.

/// What happens to packets of a source.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceRule {
    /// Dropped.
    Block = 1,
    /// Never dropped, and not limited in its rate.
    Allow = 2,
}
