//! Real servers that take connections and answer none, with XDP.

mod story;

#[test]
fn silence_speeds_up_checks_and_decides_nothing() {
    story::silence_speeds_up_checks_and_decides_nothing("");
}
