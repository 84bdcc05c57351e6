//! Words for `unshare` that tests of several programs say. What is added to them is `$1`, `$2` … of the script.

/// Runs `script`, a shell's, where its mounts are seen by nobody else.
pub fn own_mounts(script: &str) -> [&str; 7] {
    [
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        script,
        "sh",
    ]
}

/// Runs what is added where no further user namespace can be made.
pub const WITHOUT_USER_NAMESPACES: [&str; 6] = [
    "-U",
    "--map-current-user",
    "--keep-caps",
    "sh",
    "-c",
    "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$0\" \"$@\"",
];
