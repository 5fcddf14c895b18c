#compdef galley
# Completion of galley for zsh. Load it with:  source <(galley completion zsh)

_galley() {
    local line
    local -a words_found
    for line in "${(@f)$(galley __complete "${(@)words[2,CURRENT-1]}" "${words[CURRENT]}" 2>/dev/null)}"; do
        case $line in
            ('') ;;
            (:files) _files ;;
            (:dirs) _files -/ ;;
            (:commands) _command_names -e ;;
            (*) words_found+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}") ;;
        esac
    done
    (( ${#words_found} )) && _describe galley words_found
}
compdef _galley galley
