#!/bin/sh
# Makes the numbered seeds of targets anew out of what the fuzzer has found: seeds.sh TARGET...
# Takes the inputs of a minimal cover, the longest first since they do most, up to MOST bytes together.
set -eu
cd "$(dirname "$0")"
MOST=${MOST:-12000}
for target in "$@"; do
    cover=$(mktemp -d)
    RUSTC_BOOTSTRAP=1 cargo fuzz run -s address ${TARGET_DIR:+--target-dir "$TARGET_DIR"} "$target" \
        "$cover" "corpus/$target" -- -set_cover_merge=1 2>/dev/null
    rm -f "seeds/$target"/[0-9][0-9][0-9]
    number=0 total=0
    for file in $(ls -S "$cover"); do
        size=$(stat -c %s "$cover/$file")
        [ "$size" -le 600 ] && [ "$((total + size))" -le "$MOST" ] || continue
        total=$((total + size))
        cp "$cover/$file" "seeds/$target/$(printf %03d $number)"
        number=$((number + 1))
    done
    rm -r "$cover"
    echo "$target: $number seeds"
done
