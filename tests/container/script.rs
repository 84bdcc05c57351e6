//! A script as people have it for Singularity, with a link to our program of that name, and not a word changed.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use serde_json::json;

use crate::image::ImageBuilder;
use crate::machine::{complaint, machines};

const SCRIPT: &str = r##"#!/bin/sh
set -eu
singularity --version | grep -q '^apptainer version 1\.'
singularity pull tool.sif "$1"
test -x tool.sif
singularity pull tool.sif "$1" 2>/dev/null && exit 20 || test $? = 255
singularity pull --force tool.sif "$1"
singularity exec tool.sif echo exec one 'two  three'
export SINGULARITYENV_FROM_HOST="from the host"
singularity exec tool.sif sh -c 'echo "$FROM_HOST, $GREETING, $SINGULARITY_NAME"'
mkdir data && echo input > data/in
singularity exec --cleanenv --bind "$PWD/data:/data:ro" --env A=b tool.sif sh -c 'cat /data/in; echo $A'
SINGULARITY_BIND=data:/data singularity exec tool.sif sh -c 'echo output > /data/out'
cat data/out
echo piped | singularity exec tool.sif cat
lines=$(singularity exec tool.sif sh -c 'echo captured')
echo "$lines"
singularity exec tool.sif sh -c 'exit 7' || echo "status $?"
singularity exec tool.sif nonesuch 2>/dev/null || echo "status $?"
singularity run tool.sif
singularity run tool.sif a 'b c'
./tool.sif
./tool.sif "as a  program" --help -x
echo 'echo from a shell; exit 3' | singularity shell tool.sif || echo "status $?"
singularity exec --pwd / --contain --writable-tmpfs tool.sif sh -c 'pwd; echo x > /written; cat /written'
singularity inspect tool.sif | grep -o 'maintainer.*ada' | tr -cd 'a-z'
echo
singularity instance start tool.sif service
singularity instance list | grep -c service
singularity exec instance://service echo in the instance
singularity instance stop service
singularity instance list | grep -c service || true
"##;

const SAID: &str = "\
exec one two  three
from the host, hello, tool.sif
input
b
output
piped
captured
status 7
status 255
entry default
entry a b c
entry default
entry as a  program --help -x
from a shell
status 3
/
x
maintainerada
1
in the instance
0
";

#[test]
fn a_script_for_singularity_works_with_a_link_of_that_name() {
    let Some(mut image) = ImageBuilder::new() else {
        return;
    };
    image.config("Entrypoint", json!(["echo", "entry"]));
    image.config("Cmd", json!(["default"]));
    image.config("Env", json!(["GREETING=hello", "PATH=/bin"]));
    image.config("Labels", json!({"maintainer": "ada"}));
    let image = image.finish();
    for machine in machines() {
        let programs = machine.own_directory("programs");
        for name in ["singularity", "run-singularity"] {
            symlink(env!("CARGO_BIN_EXE_sifon"), programs.join(name)).unwrap();
        }
        let here = machine.own_directory("here");
        let script = programs.join("script");
        fs::write(&script, SCRIPT).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = machine.program(&script);
        let path = std::env::var("PATH").unwrap();
        command
            .arg(image.reference())
            .current_dir(&here)
            .env("HOME", &here)
            .env("PATH", format!("{}:{path}", programs.display()));
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(said, SAID, "{}", complaint(&output));
        assert!(output.status.success(), "{}", complaint(&output));
        machine.wait_for_all();
    }
}
