# Completion of galley for fish. Load it with:  galley completion fish | source

function __galley_complete
    set -l words (commandline -opc) (commandline -ct)
    for line in (galley __complete $words[2..-1] 2>/dev/null)
        switch $line
            case :files
                __fish_complete_path (commandline -ct)
            case :dirs
                __fish_complete_directories (commandline -ct)
            case :commands
                __fish_complete_command
            case '*'
                echo $line
        end
    end
end
complete -c galley -f -a '(__galley_complete)'
