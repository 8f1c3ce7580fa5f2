//! Every step of the demonstration as a test of its own, on a fresh cluster.

use lab::{
    Guide,
    steps::{STEPS, Seen},
};

fn step(name: &str) {
    let step = STEPS.iter().find(|step| step.name == name).unwrap();
    let mut guide = Guide::start().unwrap();
    let mut seen = Seen::default();
    if let Err(error) = (step.run)(&mut guide, &mut seen) {
        panic!(
            "{error:#}\nseen: {:?}\n--- log of node1\n{}--- log of node2\n{}",
            seen.0,
            guide.node1.log(),
            guide.node2.log()
        );
    }
}

macro_rules! steps {
    ($($function:ident $name:literal;)*) => {
        $(#[test] fn $function() { step($name); })*

        /// A step without a test would go unnoticed.
        #[test]
        fn every_step_has_a_test() {
            let tested = [$($name),*];
            assert!(STEPS.iter().all(|step| tested.contains(&step.name)));
        }
    };
}

steps! {
    election "election";
    weights "weights";
    health "health";
    transfers "transfers";
    stop "stop";
    port_down "port-down";
    notify "notify";
    dual_master "dual-master";
    keepalived "keepalived";
}
