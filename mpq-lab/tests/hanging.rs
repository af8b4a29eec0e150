//! A CRIU that does not come to an end: it is ended as long as it has not touched the server, and left alone afterwards.

use std::fs;
use std::path::Path;
use std::process::{Child, Output};

use common::{criu, privileged};
use operated::{NOT_DUMPED, OTHER_USER, Operated, ScriptedCriu, assert_refused, printed};

mod common;
#[path = "common/operated.rs"]
mod operated;

/// A real one, with this done first at a step of its dump.
fn at(step: &str, script: &str) -> ScriptedCriu {
    // Of its scripts the last one runs first.
    let run = "exec $criu \"$@\" --action-script $folder/step";
    let scripted = ScriptedCriu::new("dump", run);
    let begun = scripted.file("begun");
    let script = format!(
        "#!/bin/sh -p\n[ $CRTOOLS_SCRIPT_ACTION = {step} ] || exit 0\necho $$ >{}\n{script}\n",
        begun.display()
    );
    scripted.write("step", &script);
    scripted
}

fn begin(operated: &Operated) -> Child {
    operated.checkpoint(&operated.images()).spawn().unwrap()
}

/// The server goes on, nothing is left of CRIU, and the next move is not in its way.
fn assert_given_up(mut operated: Operated, hanging: &ScriptedCriu, output: &Output) {
    assert_refused(output, NOT_DUMPED, "CRIU has not begun in 20 s");
    let pid = fs::read_to_string(hanging.file("begun")).unwrap();
    let process = Path::new("/proc").join(pid.trim());
    assert!(!process.exists(), "{}", process.display());
    assert!(operated.log().contains("Resuming (old address) → Serving"));
    operated.assert_serves_at(&operated.address);
    operated.criu = criu();
    let images = operated.dumped();
    let restored = operated.restore(&images);
    operated.assert_restored(&restored);
}

#[tokio::test]
async fn a_criu_that_hangs_is_ended_until_it_has_begun() {
    let Some(_alone) = privileged().await else {
        return;
    };
    // All at once, since each takes half a minute.
    let idle = ScriptedCriu::new("dump", "echo $$ >$begun; sleep 1000; exec $criu \"$@\"");
    let before = at("pre-dump", "exec sleep 1000");
    let late = at("post-dump", "sleep 25");
    let of_idle = Operated::start(&idle.program(), &[]);
    let of_user = Operated::start_for_user(&before.program(), OTHER_USER, &[]);
    let mut of_late = Operated::start(&late.program(), &[]);
    let begun = [&of_idle, &of_user, &of_late].map(begin);
    let [idle_ends, before_ends, late_ends] = begun.map(|it| it.wait_with_output().unwrap());
    assert_given_up(of_idle, &idle, &idle_ends);
    assert_given_up(of_user, &before, &before_ends);

    // It was late when it had the server.
    let images = printed(&late_ends);
    of_late.criu = criu();
    let restored = of_late.restore(&images);
    of_late.assert_restored(&restored);
}
