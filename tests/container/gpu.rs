//! `--nv` and `--rocm` on a machine that has, or has not, a driver.

use crate::image::ImageBuilder;
use crate::machine::{complaint, machines};

/// A library, a program and two devices of a driver, where the machine's own would be. `$2` is what ldconfig calls its libraries.
const DRIVER: &str = r#"
    made=$1/made-up; mkdir -p $made/lib $made/bin $made/dev/pts $made/dev/shm
    echo cuda > $made/lib/libcuda.so.1
    echo other > $made/lib/libother.so.1
    printf '#!/bin/sh\necho smi\n' > $made/bin/nvidia-smi
    {
        printf '#!/bin/sh\n'
        for library in libcuda.so.1 libother.so.1; do
            printf 'printf "\\t%s (%s) => %s\\n"\n' $library "$2" $made/lib/$library
        done
    } > $made/ldconfig
    chmod 755 $made/bin/nvidia-smi $made/ldconfig
    mount --bind $made/ldconfig /sbin/ldconfig
    mount -t tmpfs -o mode=755 none $made/dev
    mkdir $made/dev/pts $made/dev/shm
    for name in null zero random urandom tty; do cp -a /dev/$name $made/dev/; done
    mknod -m 666 $made/dev/fuse c 10 229
    for name in nvidia0 nvidiactl; do mknod -m 666 $made/dev/$name c 1 3; done
    ln -s /proc/self/fd $made/dev/fd
    mount --bind $made/dev /dev"#;

#[test]
fn the_drivers_libraries_programs_and_devices_are_there_on_request() {
    let Some(image) = ImageBuilder::new() else {
        return;
    };
    let image = image.finish();
    let kind = match cfg!(target_arch = "aarch64") {
        true => "libc6,AArch64",
        false => "libc6,x86-64",
    };
    for machine in machines().iter().filter(|machine| !machine.is_root()) {
        machine.prepare(DRIVER, &[kind]);
        let programs = machine.directory().join("made-up/bin");
        let says = |options: &[&str], script: &str| {
            let mut command = machine.exec(&image, options, &["sh", "-c", script]);
            let path = format!("{}:/usr/bin:/bin:/usr/sbin:/sbin", programs.display());
            let output = command.env("PATH", path).output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{}", complaint(&output));
            (said, complaint(&output))
        };
        let script = "cat /.singularity.d/libs/*; nvidia-smi; cat /dev/nvidia0 && ls /dev/nvidia*; echo $LD_LIBRARY_PATH";
        let shown = "cuda\nsmi\n/dev/nvidia0\n/dev/nvidiactl\n/.singularity.d/libs\n";
        for options in [&["--nv"][..], &["--nv", "--contain"]] {
            let (said, warned) = says(options, script);
            assert_eq!(said, shown, "{options:?}: {warned}");
            assert!(!warned.contains("Could not find"), "{warned}");
        }
        // Nobody asked.
        let script = "ls /.singularity.d/libs /usr/bin/nvidia-smi /dev/nvidia0 2>/dev/null; true";
        let (said, _) = says(&["--contain"], script);
        assert_eq!(said, "/.singularity.d/libs:\n");
        // There is another driver.
        let (said, warned) = says(&["--rocm"], "ls /.singularity.d/libs");
        assert_eq!(said, "");
        assert!(
            warned.contains("Could not find any rocm files on this host!"),
            "{warned}"
        );
        machine.wait_for_all();
    }
}
