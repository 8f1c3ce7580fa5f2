//! Real servers that take connections and answer none, with IPVS.

use crate::{cluster::MODE, silent_story, with_modules};

#[test]
fn silence_speeds_up_checks_with_ipvs() {
    let _modules = with_modules();
    silent_story::silence_speeds_up_checks_and_decides_nothing(MODE);
}
